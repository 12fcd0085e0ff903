// Both pages of `l2l serve`. Whatever people or files say is put in as text, never as markup.
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

/** As large as there is room, small pictures up to four times their size. */
function fit(width, height, share) {
  const stage = $("stage");
  const room = stage.parentElement.clientWidth;
  const scale = Math.min(room / width, Math.max(200, window.innerHeight * share) / height, 4);
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

// ---------------------------------------------------------------- try

function tryPage() {
  const picture = $("picture");
  let file = null, box = null, from = null, turn = 0;

  fetch("/health", { credentials: "omit" }).then((reply) => reply.json()).then((told) => {
    $("run").textContent = `${told.run}: ${told.method}, step ${told.step}`;
    $("to-review").hidden = !told.review;
  }).catch(() => say("The server does not answer."));

  const size = () => [picture.naturalWidth, picture.naturalHeight];
  const refit = () => picture.naturalWidth && fit(...size(), 0.72);

  async function take(chosen) {
    if (!chosen) return;
    turn += 1;
    $("layers").replaceChildren();
    $("answers").replaceChildren();
    setBox(null);
    say("");
    if (picture.src) URL.revokeObjectURL(picture.src);
    try {
      await loaded(picture, URL.createObjectURL(chosen));
      file = chosen;
    } catch (error) {
      file = null;
      say(error.message);
    }
    $("stage").hidden = !file;
    $("empty").hidden = Boolean(file);
    refit();
  }

  function setBox(value) {
    box = value;
    $("box").hidden = !value;
    $("no-box").disabled = !value;
    if (!value) return;
    const [width, height] = size();
    const [x0, y0, x1, y1] = value;
    Object.assign($("box").style, { left: `${(x0 / width) * 100}%`, top: `${(y0 / height) * 100}%`,
      width: `${((x1 - x0) / width) * 100}%`, height: `${((y1 - y0) / height) * 100}%` });
  }

  async function send(event) {
    event?.preventDefault();
    const sentences = $("sentences").value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (!file) return say("Choose a picture first.");
    if (!sentences.length) return say("Write a sentence first.");
    const body = new FormData();
    body.append("image", file);
    sentences.forEach((sentence) => body.append("sentence", sentence));
    body.append("format", "png");
    if (box) body.append("boxes", JSON.stringify(sentences.map(() => box)));
    const mine = (turn += 1);
    $("send").disabled = true;
    say("Asking …");
    try {
      const told = await (await ask("/predict", { method: "POST", body })).json();
      if (mine === turn) await show(told.answers);
      say("");
    } catch (error) {
      say(error.message);
    } finally {
      $("send").disabled = false;
    }
  }

  async function show(answers) {
    const layers = [], rows = [];
    for (const [number, found] of answers.entries()) {
      const colour = COLOURS[number % COLOURS.length];
      const canvas = document.createElement("canvas");
      await drawMask(canvas, found.mask, colour);
      const row = document.createElement("li"), label = document.createElement("label");
      const shown = document.createElement("input"), swatch = document.createElement("i");
      const what = document.createElement("span"), score = document.createElement("span");
      shown.type = "checkbox";
      shown.checked = !found.nothing;
      shown.disabled = found.nothing;
      canvas.hidden = found.nothing;
      shown.onchange = () => { canvas.hidden = !shown.checked; };
      swatch.style.background = found.nothing ? "transparent" : colour;
      what.className = "what";
      what.textContent = found.sentence;
      score.textContent = `expected IoU ${found.score.toFixed(2)}`;
      label.append(shown, swatch, what);
      if (found.nothing) {
        const nothing = document.createElement("span");
        nothing.className = "tag";
        nothing.textContent = "nothing here";
        label.append(nothing);
      }
      label.append(score);
      row.append(label);
      layers.push(canvas);
      rows.push(row);
    }
    $("layers").replaceChildren(...layers);
    $("answers").replaceChildren(...rows);
  }

  const stage = $("stage"), drop = $("drop");
  stage.classList.add("pointing");
  stage.onpointerdown = (event) => {
    if (event.button) return;
    from = place(event, ...size());
    stage.setPointerCapture(event.pointerId);
  };
  stage.onpointermove = (event) => {
    if (!from) return;
    const [width, height] = size(), to = place(event, width, height);
    const inside = (value, most) => Math.round(Math.min(Math.max(value, 0), most));
    const found = [inside(Math.min(from[0], to[0]), width), inside(Math.min(from[1], to[1]), height),
      inside(Math.max(from[0], to[0]), width), inside(Math.max(from[1], to[1]), height)];
    if (found[2] - found[0] > 1 && found[3] - found[1] > 1) setBox(found);
  };
  stage.onpointerup = stage.onpointercancel = () => { from = null; };
  $("no-box").onclick = () => setBox(null);
  $("file").onchange = () => take($("file").files[0]);
  $("ask").onsubmit = send;
  $("sentences").onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send(event);
  };
  document.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
  document.ondragleave = () => drop.classList.remove("over");
  document.ondrop = (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take([...event.dataTransfer.files].find((one) => one.type.startsWith("image/")));
  };
  document.onpaste = (event) => take([...event.clipboardData.files].find((one) => one.type.startsWith("image/")));
  window.onresize = refit;
}

// ------------------------------------------------------------- review

function reviewPage() {
  const canvas = $("mask"), picture = $("picture"), stage = $("stage"), brush = $("brush");
  const colour = COLOURS[0];
  const drafts = new Map(); // number -> strokes that are not decided on yet
  let pairs = [], order = [], at = 0, item = null, base = null;
  let painting = false, erasing = false, size = 0, stroke = null, busy = false, turn = 0;

  const strokes = () => {
    if (!drafts.has(item.number)) drafts.set(item.number, []);
    return drafts.get(item.number);
  };

  function progress() {
    const count = (verdict) => pairs.filter((one) => one.decided === verdict).length;
    const rejected = count("reject"), decided = rejected + count("accept");
    $("progress").textContent = `${decided} of ${pairs.length}, ${rejected} rejected`;
    $("bar").max = pairs.length;
    $("bar").value = decided;
  }

  /** What the filter shows is fixed when it is chosen, so that one can go back to what was just decided. */
  function choose() {
    const wanted = $("filter").value;
    order = pairs.filter((one) => wanted === "all" || (one.decided ?? "open") === wanted).map((one) => one.number);
    at = 0;
    show();
  }

  function nobody(text) {
    item = null;
    stage.hidden = true;
    $("empty").hidden = false;
    $("empty").textContent = text;
    for (const id of ["accept", "reject", "repaint", "toggle"]) $(id).disabled = true;
  }

  async function show() {
    const mine = (turn += 1);
    paintingIs(false);
    say("");
    $("previous").disabled = at <= 0;
    $("next").disabled = at >= order.length;
    for (const id of ["nothing", "decided"]) $(id).hidden = true;
    for (const id of ["sentence", "score", "pair"]) $(id).textContent = "";
    if (at >= order.length) {
      $("pair").parentElement.hidden = true;
      return nobody($("filter").value === "open" ? "Nothing is left to decide." : "No further pair.");
    }
    const pair = pairs[order[at]];
    $("pair").parentElement.hidden = false;
    $("sentence").textContent = pair.sentence;
    $("score").textContent = pair.score.toFixed(2);
    $("pair").textContent = pair.id;
    item = null;
    try {
      const [told, blob] = await Promise.all([
        ask(`/review/item/${pair.number}`).then((reply) => reply.json()),
        ask(`/review/picture/${pair.number}`).then((reply) => reply.blob()),
      ]);
      const drawn = document.createElement("canvas");
      const address = URL.createObjectURL(blob);
      await Promise.all([drawMask(drawn, told.mask, colour), loaded(new Image(), address)]);
      if (mine !== turn) return URL.revokeObjectURL(address);
      if (picture.src) URL.revokeObjectURL(picture.src);
      await loaded(picture, address);
      if (mine !== turn) return;
      item = told;
      base = drawn;
      pair.decided = told.decided;
    } catch (error) {
      if (mine === turn) nobody("This pair cannot be shown."), say(error.message);
      return;
    }
    picture.alt = `Picture of: ${item.sentence}`;
    $("nothing").hidden = !item.nothing;
    $("decided").hidden = !item.decided;
    $("decided").textContent = item.decided === "reject" ? "rejected" : "accepted";
    $("decided").className = `tag ${item.decided}`;
    size ||= Math.max(4, Math.round(Math.sqrt(item.size[0] * item.size[1]) / 15));
    canvas.width = item.size[1];
    canvas.height = item.size[0];
    for (const id of ["accept", "reject", "repaint", "toggle"]) $(id).disabled = false;
    $("empty").hidden = true;
    stage.hidden = false;
    canvas.hidden = false;
    refit();
    redraw();
    sizeIs(size);
  }

  function refit() {
    if (item) fit(item.size[1], item.size[0], 0.6);
  }

  function redraw() {
    const context = canvas.getContext("2d");
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(base, 0, 0);
    for (const one of strokes()) trace(context, one);
    $("undo").disabled = !strokes().length;
    $("toggle").setAttribute("aria-pressed", String(!canvas.hidden));
  }

  function trace(context, one) {
    context.globalCompositeOperation = one.erase ? "destination-out" : "source-over";
    context.strokeStyle = colour;
    context.lineWidth = one.size;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...one.points[0]);
    for (const point of one.points) context.lineTo(...point);
    context.stroke();
  }

  /** The mask as a PNG in base64, white what is meant; half a pixel or more counts as one. */
  function exported() {
    const out = document.createElement("canvas");
    out.width = canvas.width;
    out.height = canvas.height;
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    for (let pixel = 0; pixel < pixels.data.length; pixel += 4) {
      const value = pixels.data[pixel + 3] > 127 ? 255 : 0;
      pixels.data.set([value, value, value, 255], pixel);
    }
    out.getContext("2d").putImageData(pixels, 0, 0);
    return out.toDataURL("image/png").split(",")[1];
  }

  async function decide(verdict) {
    if (!item || busy || stroke) return;
    busy = true;
    const mine = item, body = { id: mine.id, verdict };
    if (strokes().length) body.mask = exported();
    try {
      await ask(`/review/item/${mine.number}`, { method: "POST", body: JSON.stringify(body),
        headers: { "Content-Type": "application/json" } });
      pairs[mine.number].decided = verdict;
      drafts.delete(mine.number);
      progress();
      if (item === mine) go(1);
    } catch (error) {
      say(error.message);
    } finally {
      busy = false;
    }
  }

  function go(by) {
    const to = at + by;
    if (to < 0 || to > order.length) return;
    at = to;
    show();
  }

  function paintingIs(on) {
    painting = on && Boolean(item);
    stroke = null;
    stage.classList.toggle("painting", painting);
    $("tools").hidden = !painting;
    brush.hidden = true;
    $("repaint").setAttribute("aria-pressed", String(painting));
    if (painting) hide(false);
  }

  function erasingIs(on) {
    erasing = on;
    $("erase").setAttribute("aria-pressed", String(on));
    brush.classList.toggle("erasing", on);
  }

  function sizeIs(value) {
    size = Math.min(Math.max(Math.round(value), 1), 1000);
    $("size").textContent = `${size} px`;
    const shown = item ? (size / item.size[1]) * stage.clientWidth : size;
    brush.style.width = brush.style.height = `${shown}px`;
  }

  function hide(on) {
    canvas.hidden = on;
    $("toggle").setAttribute("aria-pressed", String(!on));
  }

  function undo() {
    if (!painting || stroke) return;
    strokes().pop();
    redraw();
  }

  const larger = () => painting && sizeIs(Math.max(size + 1, size * 1.25));
  const smaller = () => painting && sizeIs(Math.min(size - 1, size / 1.25));
  const actions = {
    a: () => decide("accept"), r: () => decide("reject"), e: () => item && paintingIs(!painting),
    n: () => go(1), arrowright: () => go(1), p: () => go(-1), arrowleft: () => go(-1),
    0: () => item && hide(!canvas.hidden), x: () => painting && erasingIs(!erasing), z: undo, "]": larger, "[": smaller,
  };
  const buttons = { accept: "a", reject: "r", repaint: "e", next: "n", previous: "p", toggle: "0", erase: "x", undo: "z",
    larger: "]", smaller: "[" };
  for (const [id, key] of Object.entries(buttons)) $(id).onclick = () => actions[key]();
  document.onkeydown = (event) => {
    const undoing = event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey;
    if (((event.ctrlKey || event.metaKey) && !undoing) || event.altKey || $("token-dialog").open) return;
    if (["INPUT", "TEXTAREA", "SELECT"].includes(event.target.tagName)) return;
    const action = Object.hasOwn(actions, event.key.toLowerCase()) && actions[event.key.toLowerCase()];
    if (!action || (event.repeat && "are".includes(event.key.toLowerCase()))) return;
    event.preventDefault();
    action();
  };
  stage.oncontextmenu = (event) => painting && event.preventDefault();
  stage.onpointerdown = (event) => {
    if (!painting || stroke || ![0, 2].includes(event.button)) return;
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    stroke = { erase: erasing || event.button === 2, size, points: [place(event, canvas.width, canvas.height)] };
    strokes().push(stroke);
    redraw();
  };
  stage.onpointermove = (event) => {
    const [x, y] = place(event, 100, 100);
    brush.hidden = !painting;
    brush.style.left = `${x}%`;
    brush.style.top = `${y}%`;
    if (!stroke) return;
    stroke.points.push(place(event, canvas.width, canvas.height));
    // Only the last piece: redrawing everything at each move is slow on large pictures.
    trace(canvas.getContext("2d"), { ...stroke, points: stroke.points.slice(-2) });
  };
  stage.onpointerup = stage.onpointercancel = () => { stroke = null; };
  stage.onpointerleave = () => { brush.hidden = true; };
  $("filter").onchange = () => { choose(); $("filter").blur(); };
  window.onresize = () => { refit(); sizeIs(size); };
  window.onbeforeunload = (event) => {
    if ([...drafts.values()].some((one) => one.length)) event.preventDefault();
  };

  ask("/review/queue").then((reply) => reply.json()).then((told) => {
    pairs = told.pairs;
    progress();
    choose();
  }).catch((error) => { nobody("There is no queue."); say(error.message); });
}

({ try: tryPage, review: reviewPage })[document.body.dataset.page]();
