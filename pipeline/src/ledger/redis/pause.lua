#!lua flags=allow-oom
-- A person pauses a run. KEYS: run. ARGV: the halt. Returns {0} where there is no such run, {1} where it is paused now, or {2, the
-- halt} where a person has paused it before. A pause of the run's own gives way: starting its producer would lift it.
if redis.call('HEXISTS', KEYS[1], 'job') == 0 then return {'0'} end
local halt = redis.call('HGET', KEYS[1], 'halt')
if halt and halt:find('"cause":"asked"', 1, true) then return {'2', halt} end
redis.call('HSET', KEYS[1], 'halt', ARGV[1])
return {'1'}
