// What the page of ota.web and the Bluetooth page (mpota/push/ble_page) have in common.
const at = id => document.getElementById(id)
const show = (id, isShown = true) => { at(id).hidden = !isShown }
const HINTS = {
  secret: 'Look at the secret once more: it is the one that the program on the board was given.',
  unconfirmed: 'What runs is on trial: confirm it first.',
  'failed-version': 'This version was tried on this board and did not come up. Send another one.',
  unsigned: 'The board has keys: it takes what they have signed.',
  memory: 'Restart the board and try again before its program takes its memory.'}

let data = null, judged = null, job = null

function make(tag, className, ...texts) {
  const made = document.createElement(tag)
  made.className = className
  made.append(...texts)
  return made
}

// For screen readers.
function say(text) {
  if (at('live').textContent != text) at('live').textContent = text
}

function list(target, rows) {
  target.replaceChildren(...rows.flatMap(([name, text]) => [make('dt', '', name), make('dd', '', text)]))
}

// What `judge` has found; without a board nobody knows yet whether it fits.
function showJudged(board) {
  const rows = make('dl', '')
  list(rows, judged.rows)
  const parts = judged.rows.length ? [rows] : []
  if (judged.problems.length)
    parts.push(make('div', 'box bad', ...judged.problems.map(text => make('p', '', text))))
  else if (board) parts.push(make('div', 'box good', make('p', '', 'This board can take it.')))
  at('judged').replaceChildren(...parts)
}

function step(text) {
  job.doing = at('doing').textContent = text
  at('numbers').textContent = ''
  at('bar').removeAttribute('value')
  say(text)
}

// The board has `position` of `size` bytes, and `written` of them in its flash.
function showWritten(position, size, written, timeText) {
  if (job.first == null) {
    job.first = position
    job.started = Date.now()
    job.doing = at('doing').textContent = 'Writing'
  }
  const seconds = (Date.now() - job.started) / 1000, done = position - job.first
  at('bar').value = position / size
  let text = `${sizeText(written)} of ${sizeText(size)} written and verified`
  if (seconds > 2 && done > 0)
    text += `, ${timeText(Math.ceil((size - position) * seconds / done))} left`
  at('numbers').textContent = text
  const quarter = Math.floor(position / size * 4) * 25
  if (quarter && quarter < 100) say(`${quarter} percent written`)
}

function showAllWritten() {
  step('All is written: the board checks the whole')
  show('stop', false)
}

// How it ended: `kind` good, wait or bad.
function end(kind, title, ...texts) {
  const outcome = at('outcome')
  outcome.className = kind
  outcome.replaceChildren(make('b', '', title), ...texts.filter(Boolean).map(text => make('p', '', text)))
  show('outcome')
  show('going', false)
  say('')
}

function endBy(error, ...texts) {
  if (error instanceof Stopped) end('wait', 'Stopped', 'What ran goes on running. Sending the file again goes on where it was, if the board still has it.')
  else end('bad', 'The board has not taken it', `${error.message}${error.code ? ` (${error.code})` : ''}`,
    HINTS[error.code], ...texts, 'What ran before goes on running.')
}

function wire(choose, start) {
  for (const name of ['dragover', 'dragleave', 'drop']) at('drop').addEventListener(name, event => {
    event.preventDefault()
    at('drop').classList.toggle('over', name == 'dragover')
    if (name == 'drop') choose(event.dataTransfer.files[0])
  })
  at('file').addEventListener('change', () => choose(at('file').files[0]))
  at('form').addEventListener('submit', start)
  at('stop').addEventListener('click', () => {
    job.isStopped = true
    at('doing').textContent = 'Stopping'
  })
  at('show').addEventListener('click', () => {
    const isShown = at('secret').type == 'password'
    at('secret').type = isShown ? 'text' : 'password'
    at('show').textContent = isShown ? 'Hide' : 'Show'
    at('show').setAttribute('aria-pressed', isShown)
  })
}
