// Load for server.js: documents of random words and searches, until it is ended. A line every 1,000 requests.
'use strict';
const http = require('http');

const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
let seed = 1;
const random = (limit) => (seed = (seed * 1103515245 + 12345) % 2147483648) % limit;
const word = () => 'w' + random(5000).toString(36);

function send(method, path, body) {
  return new Promise((resolve, reject) => {
    const request = http.request({ socketPath: process.argv[2], method, path, agent }, (response) => {
      response.on('data', () => {});
      response.on('end', resolve);
    });
    request.on('error', reject);
    request.end(body);
  });
}

async function worker(number) {
  for (let count = 1; ; count++) {
    const text = Array.from({ length: 20 + random(60) }, word).join(' ');
    await (random(3) ? send('POST', `/${number}/${count}`, text) : send('GET', `/?word=${word()}`));
    if (++sent % 1000 === 0) console.log(sent);
  }
}

let sent = 0;
for (let number = 0; number < 8; number++) worker(number);
