// A picture, sentences, and what the run says of them.
"use strict";

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

tryPage();
