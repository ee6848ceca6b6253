-- Gives the right to read the input. KEYS: run. ARGV: producer, lease in ms. Returns the scan, or nothing.
-- The same producer gets the same scan again. Scans are numbered by the clock (in seconds), so that they go on rising
-- when Redis was emptied.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HMGET', KEYS[1], 'scan_by', 'scan_until_ms', 'scan')
if held[1] and held[1] ~= ARGV[1] and tonumber(held[2]) > now then
    return false
end
local scan = tonumber(held[3] or '0')
if held[1] ~= ARGV[1] then
    scan = math.max(scan + 1, tonumber(time[1]))
    for _, count in ipairs({'total', 'completed', 'failed'}) do
        redis.call('HDEL', KEYS[1], 'scan_' .. count)
    end
    redis.call('HDEL', KEYS[1], 'sealed', 'rejected', 'batch', 'batch_reply')
end
redis.call('HSET', KEYS[1], 'scan', scan, 'scan_by', ARGV[1], 'scan_until_ms', now + ARGV[2])
return scan
