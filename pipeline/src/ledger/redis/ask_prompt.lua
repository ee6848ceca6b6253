-- Asks for the answer to a prompt. KEYS: prompts, claims. ARGV: prompt, product (12 bytes), token of its claim.
-- Returns the answer (JSON); 'busy' while it is being asked for another product, whose claim holds; else 'ask'.
-- A prompt that is being asked is stored as "?<product><token>". What it says holds only as long as that claim, so that
-- nothing has to be renewed, and whoever dies, fails or gives back leaves the prompt to the next.
local PRODUCT_BYTES = 12
local mine = '?' .. ARGV[2] .. ARGV[3]
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known and known:sub(1, 1) == '{' then return known end
if known == mine then return 'ask' end
if known then
    local held = redis.call('HGET', KEYS[2], known:sub(2, 1 + PRODUCT_BYTES))
    local until_ms, token
    if held then until_ms, token = held:match('^(%d+) %d+ %d+ %d+ %d+ (.*)$') end
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    if token == known:sub(2 + PRODUCT_BYTES) and tonumber(until_ms) > now then return 'busy' end
end
redis.call('HSET', KEYS[1], ARGV[1], mine)
return 'ask'
