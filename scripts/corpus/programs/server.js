// An HTTP server with its data in memory, on the socket given: documents go in, words are looked up.
'use strict';
const http = require('http');

const documents = new Map();
const index = new Map();

function add(id, text) {
  documents.set(id, { id, text, words: text.split(' '), at: Date.now() });
  for (const word of documents.get(id).words) {
    if (!index.has(word)) index.set(word, new Set());
    index.get(word).add(id);
  }
}

function find(word) {
  return [...(index.get(word) || [])].slice(0, 20).map((id) => documents.get(id));
}

http.createServer((request, response) => {
  const url = new URL(request.url, 'http://localhost');
  if (request.method === 'POST') {
    const parts = [];
    request.on('data', (part) => parts.push(part));
    request.on('end', () => {
      add(url.pathname, Buffer.concat(parts).toString());
      response.end(JSON.stringify({ documents: documents.size }));
    });
  } else {
    response.end(JSON.stringify(find(url.searchParams.get('word'))));
  }
}).listen(process.argv[2], () => console.log('ready'));
