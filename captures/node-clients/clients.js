// Prints what it sent: {target: body}.
const http = require("http");
const agent = new http.Agent({ keepAlive: true, maxSockets: 2 });
const sent = {};
function call(method, path, parts) {
  return new Promise((resolve, reject) => {
    const request = http.request({ host: "10.1.0.10", port: 8080, agent, method, path, headers: { Host: "node.example" } }, (reply) => {
      reply.resume();
      reply.on("end", resolve);
    });
    request.on("error", reject);
    sent[path] = parts.join("");
    for (const part of parts) request.write(part);
    request.end();
  });
}
(async () => {
  const work = [];
  for (let i = 0; i < 10; i++) work.push(call("GET", `/agent/${i}?q=${encodeURIComponent("naïve & co")}`, []));
  for (let i = 0; i < 5; i++) work.push(call("POST", `/agent/chunks/${i}`, Array.from({ length: i + 1 }, (_, j) => "part " + j + "\r\n0\r\n\r\n")));
  await Promise.all(work);
  for (let i = 0; i < 5; i++) {
    const body = JSON.stringify({ i, text: "ä".repeat(i) });
    sent[`/fetch/${i}`] = body;
    await (await fetch(`http://10.1.0.10:8080/fetch/${i}`, { method: "PATCH", body, headers: { "content-type": "application/json" } })).text();
  }
  agent.destroy();
  console.log(JSON.stringify(sent));
  process.exit(0);
})();
