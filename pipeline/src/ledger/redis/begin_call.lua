-- Notes that calls of claimed products begin, and holds what they can cost. KEYS: pace, claims, run. ARGV, of each: product,
-- token, number of the call under this claim, billionths of a dollar it can cost, what the call before it has cost, the budget
-- ('': none), '1' where the call before is still under way and keeps what it holds.
-- Returns for each 0 where the call may begin; else after how many ms to ask again; -1 where the claim is somebody else's or
-- gone, -2 where the run has paused by itself, -3 where the budget has no room for the call, whatever the calls under way turn
-- out to cost. What claims hold that have run out counts as spent: their products may wait behind all others, and until they
-- are claimed again nobody else would find it.
local BUDGET_POLL_MS, SWEPT_EVERY_MS = 250, 5000
local pace, products = KEYS[1], {}
for i = 1, #ARGV, 7 do products[#products + 1] = ARGV[i] end
local claims, changed = read_fields(KEYS[2], products), {}
local function change(product, claim) claims[product], changed[product] = claim, claim end
local function sweep()
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    if now - (tonumber(redis.call('HGET', pace, 'swept')) or 0) < SWEPT_EVERY_MS then return end
    redis.call('HSET', pace, 'swept', string.format('%d', now))
    write_fields(KEYS[2], changed)
    changed = {}
    local all = redis.call('HGETALL', KEYS[2])
    for i = 1, #all, 2 do
        local until_ms, counts, hold, token = all[i + 1]:match('^(%d+) (%d+ %d+ %d+) (%d+) (.*)$')
        if hold and hold ~= '0' and tonumber(until_ms) < now then
            redis.call('HSET', KEYS[2], all[i], string.format('%s %s 0 %s', until_ms, counts, token))
            settle(hold, hold)
        end
    end
    write_money(pace)
    claims = read_fields(KEYS[2], products)
end
local is_halted = redis.call('HEXISTS', KEYS[3], 'halt') == 1
local function begin(product, asker, number, most, before, budget, is_beside)
    local held = claims[product]
    local head, begun, hold, token
    if held then head, begun, hold, token = held:match('^(%d+ %d+ %d+) (%d+) (%d+) (.*)$') end
    if token ~= asker then return -1 end
    begun, hold = tonumber(begun), tonumber(hold)
    local is_new = begun < tonumber(number)
    if is_new and hold > 0 and not is_beside then
        -- The call before has ended: what it held is free, for this one and for others.
        settle(hold, before)
        hold = 0
        change(product, string.format('%s %d 0 %s', head, begun, token))
    end
    if is_halted then return -2 end
    if is_new then
        if budget ~= '' then
            local money = redis.call('HMGET', pace, 'spent', 'held')
            local room = budget - (tonumber(money[1]) or 0) - spent_more - most
            if room < 0 then return -3 end
            if room < (tonumber(money[2]) or 0) + held_more then
                sweep()
                return BUDGET_POLL_MS
            end
        end
        held_more = held_more + most
        change(product, string.format('%s %d %d %s', head, number, hold + most, token))
    end
    return 0
end
local replies = {}
for i = 1, #ARGV, 7 do
    local turn = begin(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5], ARGV[i + 6] == '1')
    replies[#replies + 1] = turn
end
write_fields(KEYS[2], changed)
write_money(pace)
return replies
