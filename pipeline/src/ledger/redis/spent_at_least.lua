-- So much was spent, whatever is known. KEYS: pace. ARGV: billionths of a dollar.
local known = tonumber(redis.call('HGET', KEYS[1], 'spent') or '0')
if tonumber(ARGV[1]) > known then redis.call('HSET', KEYS[1], 'spent', ARGV[1]) end
return 1
