-- Replaces the document if its version is the expected one. The same call made twice answers the same.
-- KEYS: the document (hash), its history (list).
-- ARGV: expected version (0: there is none), document, by whom, how many versions to keep, channel.
-- Answers: 1 or 0 for "expected something else", the version now, and when that was written, in µs.

local version, document, by = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local now = redis.call('HMGET', KEYS[1], 'version', 'at', 'by', 'document')
local current = tonumber(now[1] or 0)
if current == version + 1 and now[3] == by and now[4] == document then
	return {1, current, now[2]} -- a repetition
end
if current ~= version then
	return {0, current, now[2] or ''}
end

local time = redis.call('TIME')
local at = time[1] .. string.format('%06d', time[2])
version = version + 1
redis.call('HSET', KEYS[1], 'version', version, 'at', at, 'by', by, 'document', document)
redis.call('LPUSH', KEYS[2], '{"version":' .. version .. ',"at":' .. at .. ',"by":' .. cjson.encode(by) .. ',"document":' .. document .. '}')
redis.call('LTRIM', KEYS[2], 0, tonumber(ARGV[4]) - 1)
redis.call('PUBLISH', ARGV[5], version)
return {1, version, at}
