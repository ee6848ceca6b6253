-- Asks for a product. KEYS: bucket, claims, answers. ARGV: product, token, lease in ms.
-- Returns {'done'}, {'answered', outcome}, {'busy'}, {'granted'} or {'repeated'} (an earlier claim ran out).
-- A claim is stored as "<until ms> <granted|repeated> <token>", so that asking twice gives the same reply.
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known and known:sub(1, 1) ~= 'o' then return {'done'} end
local answer = redis.call('HGET', KEYS[3], ARGV[1])
if answer then return {'answered', answer} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HGET', KEYS[2], ARGV[1])
local grant = 'granted'
if held then
    local until_ms, how, token = held:match('^(%d+) (%a+) (.*)$')
    if token == ARGV[2] then
        grant = how
    elseif tonumber(until_ms) > now then
        return {'busy'}
    else
        grant = 'repeated'
    end
end
redis.call('HSET', KEYS[2], ARGV[1], string.format('%d %s %s', now + ARGV[3], grant, ARGV[2]))
return {grant}
