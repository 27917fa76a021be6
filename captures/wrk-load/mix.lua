-- Three requests a write, each third a POST; the number in the target says how long its body is.
local n = 0
local function one()
  n = n + 1
  if n % 3 == 0 then
    return wrk.format("POST", "/load/" .. n, { ["Host"] = "load.example" }, "value=" .. string.rep(tostring(n), n % 40))
  end
  return wrk.format("GET", "/load/" .. n, { ["Host"] = "load.example" })
end
function delay() return 120 end
function request()
  return one() .. one() .. one()
end
