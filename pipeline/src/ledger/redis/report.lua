#!lua flags=allow-oom
-- For those who watch. KEYS: run. ARGV: vitals.
redis.call('HSET', KEYS[1], 'vitals', ARGV[1])
return 1
