#!lua flags=allow-oom
-- A call of a claimed product has ended, and the product is not done: what it held is free. KEYS: pace, claims. ARGV: product,
-- token, what it has cost in billionths of a dollar. Asked twice, it has nothing left to give back.
local held = redis.call('HGET', KEYS[2], ARGV[1])
if not held then return 1 end
local head, begun, hold, token = held:match('^(%d+ %d+ %d+) (%d+) (%d+) (.*)$')
if token ~= ARGV[2] or hold == '0' then return 1 end
redis.call('HSET', KEYS[2], ARGV[1], string.format('%s %s 0 %s', head, begun, token))
settle(hold, ARGV[3])
write_money(KEYS[1])
return 1
