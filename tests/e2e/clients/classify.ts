// Classifies a picture in each form that the API accepts: node classify.js URL PICTURE BROKEN
// A client of the types that openapi-typescript generates into schema.d.ts.

import { readFileSync } from "node:fs";

import createClient from "openapi-fetch";

import type { components, paths } from "./schema.js";

const [url, ...files] = process.argv.slice(2);
const [picture, broken] = files.map((file) => new Uint8Array(readFileSync(file)));
const client = createClient<paths>({ baseUrl: url });

// OpenAPI has no type for bytes, so a picture is a string to the types; the serializer sends the bytes.
const raw = (bytes: Uint8Array) =>
  client.POST("/v1/classify", {
    params: { query: { top_k: 1 } },
    headers: { "Content-Type": "application/octet-stream" },
    body: "",
    bodySerializer: () => bytes,
  });

const multipart = await client.POST("/v1/models/{name}/classify", {
  params: { path: { name: "efficientnet_lite0" }, query: { top_k: 1 } },
  body: { image: [] },
  bodySerializer: () => {
    const form = new FormData();
    form.append("image", new Blob([picture]), "cat.jpg");
    return form;
  },
});

const json = await client.POST("/v1/classify", {
  body: { image: Buffer.from(picture).toString("base64"), top_k: 1 },
});

function first(answer: components["schemas"]["ClassifyDocument"] | undefined): [string, number] | null {
  const best = answer?.predictions?.[0];
  return best ? [best.label, best.probability] : null;
}

const problem: components["schemas"]["ProblemDocument"] | undefined = (await raw(broken)).error;
console.log(
  JSON.stringify({
    raw: first((await raw(picture)).data),
    files: first(multipart.data),
    json: first(json.data),
    broken: problem?.code,
  }),
);
