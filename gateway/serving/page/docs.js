"use strict";
// Asks for the document, with an API key if the gateway wants one, and shows it. The key stays in this page's memory.
const byId = (id) => document.getElementById(id);

function show(spec, key) {
  SwaggerUIBundle({
    spec,
    domNode: byId("api"),
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    tryItOutEnabled: true,
    validatorUrl: null,
    requestInterceptor: (request) => {
      if (key && new URL(request.url, location.href).origin === location.origin) {
        request.headers["X-API-Key"] ??= key;
      }
      return request;
    },
  });
}

async function load(key) {
  const reply = await fetch("openapi.json", { headers: key ? { "X-API-Key": key } : {} });
  if (reply.ok) {
    byId("ask").hidden = true;
    byId("told").textContent = "";
    show(await reply.json(), key);
    return;
  }
  const told = await reply.json().catch(() => ({}));
  byId("ask").hidden = reply.status !== 401;
  byId("told").textContent = reply.status === 401 && !key ? "" : `${reply.status}: ${told.error ?? reply.statusText}`;
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  load(byId("key").value.trim());
});

// Without a key the gateway has answered 401 to the page itself, and there is nothing to try.
if (document.querySelector("meta[name=asks-for-key]")) byId("ask").hidden = false;
else load("");
