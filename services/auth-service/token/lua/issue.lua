-- Enrol: a new record with one token in force, in place of whatever was there.
-- KEYS: record, registered device. ARGV: hash, ttl, owner, '1' if it must be registered, how many
-- takeovers a minute pass.

local hash, ttl, owner, registered_only = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1'

local blocked = redis.call('HGET', KEYS[2], 'blocked') -- false: not registered
if blocked == '1' or (registered_only and not blocked) then
	return answer('unknown_client')
end
if r.cur == hash then return answer('ok') end -- done before
local wait = quarantined(owner, tonumber(ARGV[5]))
if wait > 0 then return answer('rate_limited', now + wait) end

local was = r.owner
if r.owner == owner then was = r.was end
r = {cur = hash, cur_exp = now + ttl, next_exp = 0, prev_until = 0, gen = 1,
	owner = owner, epoch = later_epoch(), was = was, taken = r.taken, taken_until = r.taken_until}
redis.call('DEL', key)
redis.call('HSET', key, 'cur', hash, 'cur_exp', int(r.cur_exp), 'gen', '1',
	'owner', owner, 'epoch', int(r.epoch))
if was then redis.call('HSET', key, 'was', was) end
if r.taken > 0 then redis.call('HSET', key, 'taken', int(r.taken), 'taken_until', int(r.taken_until)) end
keep(ttl)
return answer('ok')
