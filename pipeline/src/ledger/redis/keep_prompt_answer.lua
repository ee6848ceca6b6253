-- Keeps the answer to a prompt for the whole run; the first one counts. KEYS: prompts. ARGV: prompt, answer (JSON).
local known = redis.call('HGET', KEYS[1], ARGV[1])
if not known or known:sub(1, 1) ~= '{' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
return 1
