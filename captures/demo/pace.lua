-- A request each 150 ms and connection, with a number of its own.
local n = 0
function delay() return 150 end
function request()
  n = n + 1
  return wrk.format("GET", "/preferences/wrk/" .. n, { ["Host"] = "preference:8080", ["User-Agent"] = "wrk/4.1" })
end
