-- Leases tokens of a limit that all gateways share.
-- KEYS: the bucket (hash: tokens, at in µs), who leases from it (sorted set: node, when it last asked in ms).
-- ARGV: rate a second, burst, wanted, owed (used without a lease meanwhile), drain (1: begin empty), node, ms after
-- which a node that does not ask counts no more.
-- Answers: tokens leased, nodes that lease.

local rate, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local state = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = burst
if state[1] then
	tokens = math.min(burst, tonumber(state[1]) + math.max(0, now - tonumber(state[2])) * rate / 1000000)
end
if ARGV[5] == '1' then tokens = math.min(tokens, 0) end
tokens = tokens - tonumber(ARGV[4])
local leased = math.max(0, math.min(wanted, math.floor(tokens)))
tokens = tokens - leased
redis.call('HSET', KEYS[1], 'tokens', string.format('%.17g', tokens), 'at', string.format('%.0f', now))
local ms, lapse = math.floor(now / 1000), tonumber(ARGV[7])
-- Full again by then, it would be made anew as it was. Not before the other key: while their slot moves, Redis has no answer
-- (TRYAGAIN) for whoever asks for two keys of which one is not there.
local full = math.ceil((burst - tokens) / rate * 1000) + 1000
redis.call('PEXPIRE', KEYS[1], math.min(math.max(full, lapse), 1000000000000))
redis.call('ZADD', KEYS[2], ms, ARGV[6])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ms - lapse)
redis.call('PEXPIRE', KEYS[2], lapse)
return {leased, redis.call('ZCARD', KEYS[2])}
