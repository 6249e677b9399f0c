-- Revoke the record, or say again that it is. It writes in either case, so that a WAIT
-- behind it waits for the revocation.
-- KEYS: record. ARGV: '1' if only one that is revoked already is meant.

if not r.cur or (ARGV[1] == '1' and not r.revoked) then return answer('bad_token') end
r.revoked, r.unannounced = r.revoked or 'revoked', '1'
redis.call('HSET', key, 'revoked', r.revoked, 'unannounced', '1')
return answer(r.revoked)
