-- Keeps the first answer to a product. KEYS: bucket, claims, answers. ARGV: product, token, outcome, late ('1' or '').
-- Returns -1, -2 where the product has its result already, or, where another has claimed the product and `late` is not said, the calls begun by those whose claims
-- ran out and by the other (and keeps nothing).
local known = redis.call('HGET', KEYS[1], ARGV[1])
local is_open = not known or known:sub(1, 1) == 'o'
local held = redis.call('HGET', KEYS[2], ARGV[1])
local calls, begun, token
if held then calls, begun, token = held:match('^%d+ %d+ (%d+) (%d+) (.*)$') end
if is_open and token and token ~= ARGV[2] and ARGV[4] == '' and redis.call('HEXISTS', KEYS[3], ARGV[1]) == 0 then
    return calls + begun
end
-- First what a full Redis refuses, so that it refuses the whole.
if is_open then redis.call('HSETNX', KEYS[3], ARGV[1], ARGV[3]) end
-- A late one ends the other's claim, too: no call is begun for a product that is answered.
if token == ARGV[2] or (token and ARGV[4] == '1') then redis.call('HDEL', KEYS[2], ARGV[1]) end
-- A result may follow a failure that is on disk: it is told.
return known and known:sub(1, 1) == 'c' and -2 or -1
