-- The input was read to its end. KEYS: run. ARGV: scan, rejected. Returns 1, or 0 where the scan was lost.
if redis.call('HGET', KEYS[1], 'scan') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'sealed', 1, 'rejected', ARGV[2], 'scan_until_ms', 0)
return 1
