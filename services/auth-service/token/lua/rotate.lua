-- Rotate: write next, the token to follow. It is in force once it is presented.
-- KEYS: record. ARGV: hash, hash of the next token, ttl, owner, grace, the next that the caller knows of or ''.

local hash, successor, ttl, owner, grace = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])

local which, refused = presented(hash)
if refused then return answer(refused) end
if which == 'prev' or (r.owner and r.owner ~= owner) then return answer('not_current') end
-- Presented, next is in force. That this record does not know it is what a failover can
-- leave behind, which lost the promotion.
if which == 'next' then
	promote(grace)
elseif r.next ~= successor and (r.next or '') ~= ARGV[6] then
	local other = answer('overtaken') -- by another rotation, whose token may be in use
	other[7] = r.next or ''
	return other
end
if r.next ~= successor then
	r.next, r.next_exp = successor, now + ttl
	redis.call('HSET', key, 'next', r.next, 'next_exp', int(r.next_exp))
	keep(ttl)
end
return answer('ok', r.next_exp)
