// The requests of the page. Each returns what the server says, or throws an error whose message is the server's sentence.
// Addresses are relative to the page's, so that it works below a prefix too (a proxy's, or that of a notebook).
//
// What page.js uses of the answers, for whoever gives it another server:
//   model: model (words), samples (most), bytes (most of a file), pixels (most of a photo), original (longest side), formats (names)
//   photo: photo (key), name, width, height
//   job: job (key), state (waiting, running, done, failed, cancelled), before (jobs), done and total (passes), error (a sentence),
//     results ({name, file, view}, where picture() takes file and view)

const LOOK = 300; // milliseconds between two looks whether a job has got on

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refused("Cannot reach the server. Is it still running?", 0);
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new Refused(sentence(answer.error || `the server answered with status ${response.status}`), response.status);
}

// The server's words as a sentence; names of files, which may begin it, stay as they are.
function sentence(words) {
  const begun = /^[a-z]+ /.test(words) ? words[0].toUpperCase() + words.slice(1) : words;
  return `${begun}.`;
}

function form(fields) {
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) data.append(name, value);
  return { method: "POST", body: data };
}

// A job as the server describes it, with addresses that are relative to the page's: a proxy may have changed the others.
function described(job) {
  const results = job.results.map((result, i) => ({ ...result, file: `api/jobs/${job.job}/${i + 1}`, view: `api/jobs/${job.job}/${i + 1}/view` }));
  return { ...job, results };
}

export const model = async () => (await ask("api/model")).json();
export const upload = async (file) => (await ask("api/photos", form({ photo: file }))).json();
export const forget = (photo) => ask(`api/photos/${photo}`, { method: "DELETE" }).catch(() => {});
export const photoView = async (photo) => (await ask(`api/photos/${photo}/view`)).blob();
export const mask = async (photo, file, invert) => (await ask(`api/photos/${photo}/mask`, form({ mask: file, invert }))).blob();
export const startFill = async (photo, fields) => described(await (await ask(`api/photos/${photo}/fill`, form(fields))).json());
export const startPrior = async (photo, mask) => described(await (await ask(`api/photos/${photo}/prior`, form({ mask }))).json());
export const cancel = (job) => ask(`api/jobs/${job}`, { method: "DELETE" }).catch(() => {});
export const picture = async (path) => (await ask(path)).blob(); // of a result: its file or its view

// Looks at a job until it ends. report(job) is called at every look, and what it throws ends the looking; the last state is returned.
export async function follow(job, report) {
  while (true) {
    await report(job);
    if (job.state === "failed") throw new Refused(sentence(job.error), 0);
    if (job.state !== "waiting" && job.state !== "running") return job;
    await new Promise((resolve) => setTimeout(resolve, LOOK));
    job = described(await (await ask(`api/jobs/${job.job}`)).json());
  }
}
