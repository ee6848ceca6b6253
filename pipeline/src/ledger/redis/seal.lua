-- The input was read to its end. KEYS: run. ARGV: scan, batches admitted, rejected. Returns 1, or 0 where the scan, or a
-- batch of it, was lost.
local now_in = redis.call('HMGET', KEYS[1], 'scan', 'batch')
if now_in[1] ~= ARGV[1] or (now_in[2] or '0') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'sealed', 1, 'rejected', ARGV[3], 'scan_until_ms', 0)
return 1
