// Classify image files with a running service: node examples/client.mjs FILE ... (Node 20 or newer).
// RESNET_URL is the service's address, http://127.0.0.1:8000 by default, RESNET_API_KEY a key if it asks for one (or
// RESNET_KEY). A file that fails is an error of one line and no end of the others; the exit code is then 1.
// In a browser this works from a page of the service's own origin, such as behind the same proxy: there is no CORS.
import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

const url = process.env.RESNET_URL ?? "http://127.0.0.1:8000";
const key = process.env.RESNET_API_KEY || process.env.RESNET_KEY;
const headers = { "content-type": "application/octet-stream", ...(key && { authorization: `Bearer ${key}` }) };
const tries = 3;

async function classify(image) {
  let response;
  for (let number = 1; number <= tries; number++) {
    response = await fetch(`${url}/predict?top_k=1`, { method: "POST", headers, body: image });
    if (![429, 503].includes(response.status) || number === tries) break; // neither has changed anything
    const given = response.headers.get("retry-after") ?? ""; // a proxy may have answered, with a date or without a word
    const seconds = /^\d+$/.test(given) ? Number(given) : 1;
    await sleep(1000 * seconds * (1 + Math.random() / 2)); // else all who were refused come back at once
  }
  const text = await response.text();
  if (response.ok) return JSON.parse(text).predictions[0];
  let detail = `${response.status} ${response.statusText}`; // a proxy's page is no JSON
  try {
    detail = JSON.parse(text).detail ?? detail;
  } catch {}
  throw new Error(detail);
}

for (const file of process.argv.slice(2)) {
  try {
    const found = await classify(await readFile(file));
    console.log(`${file}: ${found.label} ${(100 * found.probability).toFixed(1)}%`);
  } catch (error) {
    console.error(`${file}: ${error.message}${error.cause ? `: ${error.cause.message}` : ""}`);
    process.exitCode = 1;
  }
}
