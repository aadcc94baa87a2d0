// A Node.js server with state that takes a while to make: the primes below three million.
import http from "node:http";

const SIZE = 3_000_000;
const isPrime = new Uint8Array(SIZE).fill(1);
for (let n = 2; n * n < SIZE; n++)
  if (isPrime[n]) for (let m = n * n; m < SIZE; m += n) isPrime[m] = 0;

const server = http.createServer((request, response) => {
  const below = Number(new URL(request.url, "http://localhost").searchParams.get("below") ?? 100);
  let count = 0;
  for (let n = 2; n < Math.min(below, SIZE); n++) count += isPrime[n];
  response.end(JSON.stringify({ below, count }));
});
server.listen(Number(process.env.PORT), process.env.HOST);
