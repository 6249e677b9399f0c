-- The record of one device, KEYS[1], and what the scripts have in common. This file
-- stands before each of them. Times are Unix milliseconds by Redis's own clock.
--
-- A script may be executed again by a client that did not see its answer: given the same
-- arguments it then answers the same, and changes nothing.

local key = KEYS[1]
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = math.floor(now_us / 1000)

local names = {'cur', 'cur_exp', 'next', 'next_exp', 'prev', 'prev_until', 'old',
	'gen', 'owner', 'epoch', 'revoked', 'was', 'unannounced', 'taken', 'taken_until'}
local values = redis.call('HMGET', key, unpack(names))
local r = {} -- nil where the record has no such field
for i, name in ipairs(names) do
	if values[i] then r[name] = values[i] end
end
for _, name in ipairs({'cur_exp', 'next_exp', 'prev_until', 'gen', 'epoch', 'taken', 'taken_until'}) do
	r[name] = tonumber(r[name] or 0)
end

-- int writes a number as Redis reads it; tostring would round what has more than 14 digits.
local function int(n)
	return string.format('%.0f', n)
end

-- answer is what every script returns; a code or a result first, then the record's state.
-- expires is that of the token the answer is about.
local function answer(code, expires)
	return {code, now, expires or r.cur_exp, r.prev_until, r.gen, r.epoch, r.was or '',
		r.unannounced and 1 or 0}
end

-- tag is what of a hash is kept in old.
local function tag(hash)
	return string.sub(hash, 1, 8)
end

-- retire puts a hash into old, which keeps the last eight.
local function retire(hash)
	r.old = string.sub((r.old or '') .. tag(hash), -64)
	redis.call('HSET', key, 'old', r.old)
end

-- retired tells whether a hash is in old.
local function retired(hash)
	for i = 1, #(r.old or ''), 8 do
		if string.sub(r.old, i, i + 7) == tag(hash) then return true end
	end
	return false
end

-- keep makes the record live until one ttl after its latest expiry.
local function keep(ttl)
	redis.call('PEXPIREAT', key, int(math.max(r.cur_exp, r.next_exp) + ttl))
end

local function later_epoch()
	return math.max(r.epoch + 1, now_us)
end

-- claim makes owner the device's owner. was stays in the record so that the same claim made
-- again names the same predecessor.
local function claim(owner)
	if r.owner == owner then return end
	r.was, r.owner, r.epoch = r.owner, owner, later_epoch()
	redis.call('HSET', key, 'owner', owner, 'epoch', int(r.epoch))
	if r.was then
		redis.call('HSET', key, 'was', r.was)
	else
		redis.call('HDEL', key, 'was')
	end
end

-- quarantined tells for how many ms owner does not get this device, because it went from one session
-- to another more than limit times within a minute (limit 0: never). Each time is counted, in taken, until the
-- minute is over at taken_until. Once there were too many, another minute has to pass.
local function quarantined(owner, limit)
	if limit == 0 or r.owner == owner then return 0 end
	if now >= r.taken_until then r.taken, r.taken_until = 0, now + 60000 end
	if r.taken <= limit then
		if not r.owner then return 0 end
		r.taken = r.taken + 1
		if r.taken > limit then r.taken_until = now + 60000 end
		redis.call('HSET', key, 'taken', int(r.taken), 'taken_until', int(r.taken_until))
		if r.taken <= limit then return 0 end
	end
	return r.taken_until - now
end

-- promote puts next into force; the token it replaces is good for grace more.
local function promote(grace)
	if r.prev then retire(r.prev) end
	r.prev, r.prev_until = r.cur, now + grace
	r.cur, r.cur_exp, r.gen = r.next, r.next_exp, r.gen + 1
	r.next, r.next_exp = nil, 0
	redis.call('HSET', key, 'cur', r.cur, 'cur_exp', int(r.cur_exp), 'prev', r.prev,
		'prev_until', int(r.prev_until), 'gen', int(r.gen), 'rotated', int(now))
	redis.call('HDEL', key, 'next', 'next_exp')
end

-- presented tells what a token is to this record: 'cur', 'next' or 'prev', all of them good;
-- or else the code to refuse it with. A replayed one revokes the record.
local function presented(hash)
	if not r.cur then return nil, 'bad_token' end
	if r.revoked then return nil, 'revoked' end
	if hash == r.cur then
		if now >= r.cur_exp then return nil, 'token_expired' end
		return 'cur'
	end
	if hash == r.next then
		if now >= r.next_exp then return nil, 'token_expired' end
		return 'next'
	end
	if hash == r.prev and now < r.prev_until then return 'prev' end
	if hash == r.prev or retired(hash) then
		r.revoked, r.unannounced = 'token_reused', '1'
		redis.call('HSET', key, 'revoked', r.revoked, 'unannounced', '1')
		return nil, 'token_reused'
	end
	return nil, 'bad_token'
end
