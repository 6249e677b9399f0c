-- Verify, and claim where an owner is given (a HELLO).
-- KEYS: record. ARGV: hash, grace, ttl, owner or '', hash of a fresh token for the case that
-- a claim presents the previous one, how many takeovers a minute pass.

local hash, grace, ttl, owner, fresh = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local claims = owner ~= ''

local which, refused = presented(hash)
if refused then return answer(refused) end
if claims then
	local wait = quarantined(owner, tonumber(ARGV[6]))
	if wait > 0 then return answer('rate_limited', now + wait) end
end
local result = 'ok'
if which == 'next' then
	promote(grace)
	result = 'promoted'
elseif which == 'prev' then
	result = 'previous'
	if claims and r.cur ~= fresh then -- the device never got cur, or lost it
		retire(r.cur)
		r.cur, r.cur_exp, r.gen = fresh, now + ttl, r.gen + 1
		r.next, r.next_exp = nil, 0
		redis.call('HSET', key, 'cur', r.cur, 'cur_exp', int(r.cur_exp), 'gen', int(r.gen))
		redis.call('HDEL', key, 'next', 'next_exp')
		keep(ttl)
	end
end
if claims then claim(owner) end
return answer(result)
