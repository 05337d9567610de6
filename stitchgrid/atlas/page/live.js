/* A page that a server made asks it for what is new; pages that are written to files do without this module. */

const live = {version: "", timer: 0};

/** Ask once; what is new takes the place of what was there, and the reader goes on looking at the same. */
async function askAgain() {
  try {
    const answer = await fetch("data", {headers: {"If-None-Match": `"${live.version}"`}, cache: "no-store"});
    if (answer.status === 200) {
      const found = await answer.json();
      live.version = (answer.headers.get("ETag") ?? "").replaceAll('"', "");
      data.sweeps = found.sweeps;
      await showSweeps();
    } else if (answer.status !== 304) throw new Error((await answer.text()).trim());
    tellLive(`Follows the store; last looked at ${new Date().toLocaleTimeString()}.`);
  } catch (problem) {
    tellLive(`No longer follows the store, asks again: ${problem.message || "no answer"}`);
  }
  live.timer = setTimeout(askAgain, 1000 * data.live.seconds);
}

function tellLive(text) {
  $("live-note").textContent = text;
  $("live-note").hidden = false;
}

function followStore() {
  live.version = data.live.version;
  tellLive("Follows the store: what a launch has done appears here.");
  live.timer = setTimeout(askAgain, 1000 * data.live.seconds);
}
