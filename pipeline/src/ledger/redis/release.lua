-- Gives a claim up, if it is still held. KEYS: claims, spent, pace. ARGV: product, token, what was spent on the product (with
-- the calls lost before), what this claim's last call has cost. Claims that ran out before stay known, as a claim of nobody. Returns whether it was held.
local held = redis.call('HGET', KEYS[1], ARGV[1])
local claims, hold, token
if held then claims, hold, token = held:match('^%d+ (%d+) %d+ %d+ (%d+) (.*)$') end
if token ~= ARGV[2] then return 0 end
-- First what a full Redis does not refuse: the rest follows it.
redis.call('HDEL', KEYS[1], ARGV[1])
if claims ~= '0' then redis.call('HSET', KEYS[1], ARGV[1], string.format('0 %d 0 0 0 -', claims)) end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[2], ARGV[1], ARGV[3]) end
if hold ~= '0' then settle(hold, ARGV[4]) end
write_money(KEYS[3])
return 1
