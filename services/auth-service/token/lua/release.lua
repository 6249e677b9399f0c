-- Release: the session that ends gives the device up, unless a newer one has it.
-- KEYS: record. ARGV: the session's epoch.

local owner = redis.call('HMGET', KEYS[1], 'owner', 'epoch')
if not owner[1] or owner[2] ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[1], 'owner', 'was')
return 1
