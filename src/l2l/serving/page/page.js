// What both pages of `l2l serve` need. Whatever people or files say is put in as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const COLOURS = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#8a5cd6"]; // Okabe & Ito
const KEY = "l2l-token";

let asking = null; // one dialog for all requests that wait for the token

function token() {
  asking ??= new Promise((done) => {
    $("token-form").onsubmit = () => {
      sessionStorage.setItem(KEY, $("token").value);
      $("token").value = "";
      asking = null;
      done();
    };
    $("token-dialog").oncancel = (event) => event.preventDefault();
    $("token-dialog").showModal();
  });
  return asking;
}

/** As fetch, with the token; asks for it where it is missing or wrong. Throws an Error with the server's words. */
async function ask(path, options = {}) {
  for (;;) {
    const known = sessionStorage.getItem(KEY);
    const headers = { ...options.headers };
    if (known) {
      // The token's UTF-8 bytes, which Basic can carry and a header's text cannot.
      const bytes = new TextEncoder().encode(":" + known);
      headers.Authorization = "Basic " + btoa(String.fromCharCode(...bytes));
    }
    let reply;
    try {
      // Without credentials the browser does not open a dialog of its own.
      reply = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
    } catch {
      throw new Error("The server does not answer.");
    }
    if (reply.ok) return reply;
    if (reply.status === 401) {
      if (known === sessionStorage.getItem(KEY)) sessionStorage.removeItem(KEY);
      await token();
      continue;
    }
    const told = await reply.json().catch(() => ({}));
    throw new Error(`${told.error ?? "The server failed"}: ${told.hint ?? reply.status}`);
  }
}

function loaded(image, address) {
  return new Promise((done, failed) => {
    image.onload = () => done(image);
    image.onerror = () => failed(new Error("The browser cannot show this picture."));
    image.src = address;
  });
}

/** Draws a mask, a grey PNG in base64, in one colour. */
async function drawMask(canvas, base64, colour) {
  const image = await loaded(new Image(), "data:image/png;base64," + base64);
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  for (let at = 0; at < pixels.data.length; at += 4) {
    const inside = pixels.data[at] > 127;
    pixels.data.set([r, g, b, inside ? 255 : 0], at);
  }
  context.putImageData(pixels, 0, 0);
}

/** As large as there is room, small pictures up to four times their size; `zoom` times that. */
function fit(width, height, share, zoom = 1) {
  const stage = $("stage");
  const room = stage.parentElement.offsetWidth;
  const scale = Math.min(room / width, Math.max(200, window.innerHeight * share) / height, 4) * zoom;
  stage.style.width = `${Math.round(width * scale)}px`;
  stage.style.aspectRatio = `${width} / ${height}`;
  stage.classList.toggle("small", scale >= 3);
}

function say(text) {
  $("message").textContent = text;
}

/** Where the pointer is, in pixels of a picture. */
function place(event, width, height) {
  const frame = $("stage").getBoundingClientRect();
  return [((event.clientX - frame.left) / frame.width) * width, ((event.clientY - frame.top) / frame.height) * height];
}
