// Classify image files with a running service, all in one request: node examples/client.mjs FILE ... (Node 20 or newer).
// In a browser this works from a page of the service's own origin, such as behind the same proxy: there is no CORS.
import { readFile } from "node:fs/promises";

const url = process.env.RESNET_URL ?? "http://127.0.0.1:8000";
const files = process.argv.slice(2);
const form = new FormData();
for (const file of files) form.append("file", new Blob([await readFile(file)]), file);

const response = await fetch(`${url}/predict?top_k=1`, { method: "POST", body: form });
const answer = await response.json();
if (!response.ok) throw new Error(answer.detail);
answer.predictions.forEach((one, index) => {
  // One bad image among several has an error in its place.
  console.log(`${files[index]}: ${one.error ? one.error.detail : `${one.label} ${(100 * one.probability).toFixed(1)}%`}`);
});
