"use strict";

// What the pages do beyond following links: confirm, say what went wrong, and show an answer while it is written.

const notice = document.getElementById("notice");

function say(text) {
  notice.textContent = text;
}

function article(role, text) {
  const made = document.createElement("article");
  made.className = "said " + role;
  const header = document.createElement("header");
  const name = document.createElement("span");
  name.className = "role";
  name.textContent = role;
  header.append(name);
  const paragraph = document.createElement("p");
  paragraph.textContent = text;
  made.append(header, paragraph);
  return made;
}

function address(kind, session) {
  return "/look/" + kind + "/" + session.split("/").map(encodeURIComponent).join("/");
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value.replaceAll("\r\n", "\n");
    const whole = held.split("\n\n");
    held = whole.pop();
    for (const event of whole) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function problem(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return "The server answered " + response.status + ".";
  }
}

async function ask(form) {
  const session = form.dataset.session;
  const timeline = document.getElementById("timeline");
  const field = form.elements.text;
  const button = form.querySelector("button");
  const text = field.value.trim();
  if (!text || button.disabled) return;
  button.disabled = true;
  say("The answer is being written.");
  const answer = article("assistant", "");
  timeline.append(article("user", text), answer);
  timeline.scrollTop = timeline.scrollHeight;
  htmx.ajax("GET", address("why", session) + "?question=" + encodeURIComponent(text.slice(0, 10000)), "#explained");
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ stream: true, metadata: { session_id: session }, messages: [{ role: "user", content: text }] }),
    });
    if (!response.ok) throw new Error(await problem(response));
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const piece = chunk.choices && chunk.choices[0] && chunk.choices[0].delta.content;
      if (piece) answer.querySelector("p").textContent += piece;
      timeline.scrollTop = timeline.scrollHeight;
    }
    field.value = "";
    say("");
  } catch (error) {
    say(error.message);
  }
  button.disabled = false;
  await htmx.ajax("GET", address("messages", session), "#timeline");
  timeline.scrollTop = timeline.scrollHeight;
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.id === "ask") {
    event.preventDefault();
    ask(form);
  } else if (form.dataset.confirm && !window.confirm(form.dataset.confirm)) {
    event.preventDefault();
  }
});

document.addEventListener("keydown", (event) => {
  if (event.target.id === "said-now" && event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    event.target.form.requestSubmit();
  }
});

document.addEventListener("htmx:responseError", (event) => {
  let message = "The server answered " + event.detail.xhr.status + ".";
  try {
    message = JSON.parse(event.detail.xhr.responseText).error.message;
  } catch {}
  say(message);
});

document.addEventListener("htmx:sendError", () => say("The server does not answer. Is it still running?"));
document.addEventListener("htmx:beforeRequest", () => say(""));

const timeline = document.getElementById("timeline");
if (timeline) timeline.scrollTop = timeline.scrollHeight;
