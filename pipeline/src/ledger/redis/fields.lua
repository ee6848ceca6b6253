-- Fields of a hash, read and written in one command for all products of a script: from Lua a command costs more than what it does.
local MOST_FIELDS = 1000
local function read_fields(key, fields)
    local values = {}
    for first = 1, #fields, MOST_FIELDS do
        local last = math.min(first + MOST_FIELDS - 1, #fields)
        local found = redis.call('HMGET', key, unpack(fields, first, last))
        for i = first, last do values[fields[i]] = found[i - first + 1] end
    end
    return values
end
local function in_parts(command, key, list)
    for first = 1, #list, MOST_FIELDS do
        redis.call(command, key, unpack(list, first, math.min(first + MOST_FIELDS - 1, #list)))
    end
end
-- Values by field; false deletes one. What a full Redis refuses comes first.
local function write_fields(key, changes)
    local set, gone = {}, {}
    for field, value in pairs(changes) do
        if value then
            set[#set + 1] = field
            set[#set + 1] = value
        else
            gone[#gone + 1] = field
        end
    end
    in_parts('HSET', key, set)
    in_parts('HDEL', key, gone)
end
-- Billionths of a dollar that are held and spent: kept until all else is written, so that a script that fails has booked nothing.
local held_more, spent_more = 0, 0
-- What a claim held is free, and what its call has cost is spent.
local function settle(hold, cost)
    held_more, spent_more = held_more - hold, spent_more + cost
end
local function write_money(pace)
    if held_more ~= 0 then redis.call('HINCRBY', pace, 'held', string.format('%d', held_more)) end
    if spent_more ~= 0 then redis.call('HINCRBY', pace, 'spent', string.format('%d', spent_more)) end
    held_more, spent_more = 0, 0
end
