-- Gives a run its job. KEYS: run. ARGV: job, prompt, schema and model fingerprints, accept ('1' or ''), now.
-- Returns the fingerprints the run began with, and whether the job was stored.
local known = redis.call('HMGET', KEYS[1], 'fp_prompt', 'fp_schema', 'fp_model')
local same = not known[1] or (known[1] == ARGV[2] and known[2] == ARGV[3] and known[3] == ARGV[4])
if not same and ARGV[5] == '' then
    return {known[1], known[2], known[3], 0}
end
redis.call('HSET', KEYS[1], 'job', ARGV[1], 'fp_prompt', ARGV[2], 'fp_schema', ARGV[3], 'fp_model', ARGV[4])
redis.call('HSETNX', KEYS[1], 'begun_at_ms', ARGV[6])
-- A pause of the run's own ends with this; a person's does not.
local halt = redis.call('HGET', KEYS[1], 'halt')
if halt and not halt:find('"cause":"asked"', 1, true) then redis.call('HDEL', KEYS[1], 'halt') end
return {ARGV[2], ARGV[3], ARGV[4], 1}
