// A doctor's browser on a string: starts Chromium with the page of this folder, prints what the
// page reports as JSON lines, obeys the lines it reads, and ends with its input or on SIGTERM.
//
// Input, one line each:   {"homeserver_url","user","password","cross_sign","relay_only"}   first
//                         screenshot PATH
//                         create {OPTIONS of POST /createRoom}
//                         send {"room_id","type","content"[,"state_key"]}
//                         call {"room_id","video"}   answer {"room_id"}   hangUp {"room_id"}
//                         media {"room_id","bytes"}   once so much has come and gone of each kind
// Output, one line each:  {"ready":{"user","device"}}   {"event":{…}}   {"failure":{…}}
//                         {"call":{"room_id","state","reason"}}   of a call that came or was placed
//                         {"done":{…}} or {"refused":"why"} for each order   {"fatal":"why"}

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { once } from "node:events";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";
import { chromium } from "playwright-core";

const HERE = dirname(fileURLToPath(import.meta.url));
const WASM = "/pkg/matrix_sdk_crypto_wasm_bg.wasm"; // where the bundled crypto looks for it

const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

// Ending the input ends the loop in main(), so that the browser is closed in one place.
const input = createInterface({ input: process.stdin });
function endInput() {
  input.close();
  process.stdin.destroy();
}
process.on("SIGTERM", endInput);

function fail(why) {
  print({ fatal: why });
  process.exitCode = 1;
  endInput();
}

async function bundle() {
  const result = await build({
    entryPoints: [join(HERE, "client.js")],
    bundle: true,
    format: "esm",
    target: "es2024",
    define: { global: "globalThis" },
    write: false,
    logLevel: "error",
  });
  return result.outputFiles[0].contents;
}

async function serve(homeserver) {
  const files = new Map([
    ["/", ["text/html", await readFile(join(HERE, "page.html"))]],
    ["/page.css", ["text/css", await readFile(join(HERE, "page.css"))]],
    ["/client.js", ["text/javascript", await bundle()]],
    [
      WASM,
      [
        "application/wasm",
        await readFile(join(HERE, "node_modules/@matrix-org/matrix-sdk-crypto-wasm", WASM)),
      ],
    ],
  ]);
  // The page may talk to itself and to the homeserver, nothing else.
  const policy = [
    "default-src 'none'",
    "script-src 'self' 'wasm-unsafe-eval'",
    "style-src 'self'",
    "img-src data:",
    `connect-src 'self' ${homeserver.origin}`,
  ].join("; ");
  const server = createServer((request, response) => {
    const [type, body] = files.get(request.url) ?? [];
    response.writeHead(body ? 200 : 404, {
      "Content-Type": type ?? "text/plain",
      "Content-Security-Policy": policy,
    });
    response.end(body);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return server;
}

function launch(homeserver) {
  const isRoot = process.getuid() === 0;
  return chromium.launch({
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    headless: true,
    chromiumSandbox: !isRoot, // Chromium refuses its sandbox to root
    handleSIGINT: false,
    handleSIGTERM: false,
    handleSIGHUP: false,
    args: [
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      // A camera and a microphone that show and play a pattern, which nobody is asked about.
      "--use-fake-device-for-media-stream",
      "--use-fake-ui-for-media-stream",
      // Names that we did not ask for lead nowhere.
      `--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE ${homeserver.hostname}`,
    ],
  });
}

async function obey(page, line) {
  const [, order, rest] = /^(\w+) (.*)$/.exec(line) ?? [];
  if (order === "screenshot") {
    await page.screenshot({ path: rest, fullPage: true });
    return { path: rest };
  }
  if (["send", "create", "call", "answer", "media", "hangUp"].includes(order)) {
    return page.evaluate(([name, given]) => window.doctor[name](given), [order, JSON.parse(rest)]);
  }
  throw new Error("unknown order: see the top of doctor.mjs");
}

async function main() {
  const lines = input[Symbol.asyncIterator]();
  const first = await lines.next();
  if (first.done) return;
  const settings = JSON.parse(first.value);
  const homeserver = new URL(settings.homeserver_url);

  const [server, browser] = await Promise.all([serve(homeserver), launch(homeserver)]);
  let isClosing = false;
  browser.once("disconnected", () => {
    if (!isClosing) fail("Chromium ended by itself");
  });
  try {
    const page = await browser.newPage({ viewport: { width: 900, height: 700 } });
    page.on("pageerror", (error) => console.error(error.message));
    page.on("console", (message) => {
      // A homeserver's 404 is an ordinary answer (no key backup yet), not a failure.
      const isAnswer = message.text().startsWith("Failed to load resource");
      if (message.type() === "error" && !isAnswer) console.error(message.text());
    });
    await page.exposeFunction("report", print);
    await page.goto(`http://127.0.0.1:${server.address().port}/`);
    print({ ready: await page.evaluate((given) => window.doctor.start(given), settings) });

    for (let next = await lines.next(); !next.done; next = await lines.next()) {
      try {
        print({ done: await obey(page, next.value) });
      } catch (error) {
        print({ refused: error.message });
      }
    }
  } finally {
    isClosing = true;
    await browser.close();
    server.close();
  }
}

main().catch((error) => fail(error.message));
