-- The input was read to its end. KEYS: run. ARGV: scan, its batches, rejected. Returns 1, or 0 where the scan was lost.
local known = redis.call('HMGET', KEYS[1], 'scan', 'batch')
if known[1] ~= ARGV[1] or (known[2] or '0') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'sealed', 1, 'rejected', ARGV[3], 'scan_until_ms', 0)
return 1
