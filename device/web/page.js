// The page: what it shows, and what it does when somebody asks for it.
const at = id => document.getElementById(id)
const show = (id, isShown = true) => { at(id).hidden = !isShown }
const STATES = {confirmed: ['Confirmed', 'good'], trial: ['On trial', 'wait'],
  waiting: ['Update is ready', 'wait'], updating: ['Is being updated', 'wait']}
const HINTS = {
  busy: 'Somebody else is sending an update: another tab, another page, or the board fetches one. Try again when that is over.',
  secret: 'Look at the secret once more: it is the one that the program on the board was given.',
  unconfirmed: 'What runs is on trial: confirm it first.',
  'failed-version': 'This version was tried on this board and did not come up. Send another one.',
  unsigned: 'The board has keys: it takes what they have signed.',
  memory: 'Restart the board and try again before its program takes its memory.'}
const HINT = at('hint').textContent
const POLL_MS = 500, IDLE_MS = 5000, AWAY_MS = 90000

let board = null  // what it said last
let data = null, judged = null, job = null
let poll = null, soon = 0  // looks that follow each other at once

function make(tag, className, ...texts) {
  const made = document.createElement(tag)
  made.className = className
  made.append(...texts)
  return made
}

function say(text) {
  if (at('live').textContent != text) at('live').textContent = text
}

// --- what runs

function releaseText(state) {
  return state.release && state.release.length ? state.release.join(' ') : state.runs
}

function ago(seconds) {
  const units = [[86400, 'day'], [3600, 'hour'], [60, 'minute'], [1, 'second']]
  const [size, name] = units.find(([size]) => seconds >= size) || units[3]
  const count = Math.floor(seconds / size)
  return `${count} ${name}${count == 1 ? '' : 's'}`
}

const began = seconds => new Date(Date.now() - seconds * 1000).toLocaleString([],
  {month: 'short', day: 'numeric', hour: 'numeric', minute: '2-digit'})

function list(target, rows) {
  target.replaceChildren(...rows.flatMap(([name, text]) => [make('dt', '', name), make('dd', '', text)]))
}

function showBoard() {
  document.title = board.host + ': update'
  at('host').textContent = board.host
  const [text, kind] = STATES[board.state] || ['', '']
  at('state').textContent = text
  at('state').className = 'badge ' + kind
  show('state', text)
  if (!board.slot) return
  at('kind').textContent = `${board.chip_name}, ota ${board.ota}`
  const rows = [['MicroPython', board.runs.replace('MicroPython ', '')], ['Slot', board.slot],
    ['State', text.toLowerCase()],
    ['Since', `${began(board.up)}, ${ago(board.up)} ago`]]
  if (board.release && board.release.length) rows.unshift(['Release', board.release.join(' ')])
  list(at('runs'), rows)
  const isOnTrial = board.state == 'trial'
  at('trial').textContent = isOnTrial ? 'What runs is on trial: if nobody confirms it, the next restart brings back the version before.' : ''
  show('trial', isOnTrial)
  show('decide', board.buttons)
  show('confirm', isOnTrial)
  show('from-url', board.url)
  at('address').textContent = location.host
  if (!job) {
    show('ask', board.flags & 1)
    offer()
  }
}

async function refresh() {
  clearTimeout(poll)
  try {
    board = await look()
    showBoard()
  } catch {
    if (!board) list(at('runs'), [['Board', 'does not answer: asking again']])
  }
  if (soon) soon -= 1
  if (!job) poll = setTimeout(refresh, soon ? POLL_MS : document.hidden ? 6 * IDLE_MS : IDLE_MS)
}

// --- what is to be sent

function offer() {
  const isReady = at('url').value ? at('url').checkValidity() : judged && !judged.problems.length
  at('go').disabled = !board || !isReady
  at('go').textContent = judged && judged.version && !at('url').value ? `Update to ${judged.version}` : 'Update'
}

async function choose(file) {
  show('chooser', false)
  show('outcome', false)
  if (!file || job) return
  at('url').value = ''
  data = judged = null  // what was chosen before is not to be sent meanwhile
  at('judged').replaceChildren()
  offer()
  at('drop-text').textContent = file.name
  at('hint').textContent = sizeText(file.size)
  try {
    if (!board) board = await look()
    data = new Uint8Array(await file.arrayBuffer())
    judged = judge(data, board)
  } catch (error) {
    judged = {rows: [], problems: [`The file cannot be read: ${error.message}`]}
  }
  const rows = make('dl', '')
  list(rows, judged.rows)
  const parts = judged.rows.length ? [rows] : []
  if (judged.problems.length)
    parts.push(make('div', 'box bad', ...judged.problems.map(text => make('p', '', text))))
  else parts.push(make('div', 'box good', make('p', '', 'This board can take it.')))
  at('judged').replaceChildren(...parts)
  offer()
}

// --- on the way

function begin() {
  clearTimeout(poll)
  job = {
    secret: at('secret').value, isStopped: false, started: Date.now(), first: null, before: board,
    onState: text => { at('doing').textContent = text || job.doing },
    onWritten,
  }
  remember()
  for (const id of ['choose', 'judged', 'ask', 'go', 'outcome', 'decide']) show(id, false)
  show('going')
  show('stop')
  step('Asking the board')
}

function remember() {
  try {
    sessionStorage.setItem('secret', at('secret').value)
  } catch {}  // the browser keeps nothing: it is typed in again
}

function step(text) {
  job.doing = at('doing').textContent = text
  at('numbers').textContent = ''
  at('bar').removeAttribute('value')
  say(text)
}

function onWritten(position, size, isAll) {
  if (isAll) {
    step('All is written: the board checks the whole')
    show('stop', false)
    return
  }
  if (job.first == null) {
    job.first = position
    job.started = Date.now()
    job.doing = at('doing').textContent = 'Writing'
  }
  const seconds = (Date.now() - job.started) / 1000, done = position - job.first
  at('bar').value = position / size
  let text = `${sizeText(position)} of ${sizeText(size)} written and verified`
  if (seconds > 2 && done > 0)
    text += `, ${ago(Math.ceil((size - position) * seconds / done))} left`
  at('numbers').textContent = text
  const quarter = Math.floor(position / size * 4) * 25
  if (quarter && quarter < 100) say(`${quarter} percent written`)
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

function over() {
  job = null
  if (at('outcome').className == 'good') {  // what was chosen has come: another one is due
    data = judged = null
    at('file').value = at('url').value = ''
    at('drop-text').textContent = 'Choose a file'
    at('hint').textContent = HINT
    at('judged').replaceChildren()
  }
  for (const id of ['choose', 'judged', 'go', 'ask']) show(id, id != 'ask' || board && board.flags & 1)
  refresh()
}

function fail(error) {
  if (error instanceof Stopped) end('wait', 'Stopped', 'What ran goes on running. Sending the file again goes on where it was, if the board still has it.')
  else end('bad', 'The board has not taken it', `${error.message}${error.code ? ` (${error.code})` : ''}`,
    HINTS[error.code], 'What ran before goes on running.')
  at('outcome').focus()
  over()
}

async function start(event) {
  event.preventDefault()
  if (job || at('go').disabled) return
  const url = at('url').value
  begin()
  try {
    job.before = board = await look()
    if (url) await fetchBy(url)
    else {
      // A turn of the loop, so that the page shows what comes: a large file takes a while to digest.
      await sleep(20)
      const restarts = await send(data, judged, job)
      await follow(restarts)
    }
  } catch (error) {
    fail(error)
  }
}

async function fetchBy(url) {
  const session = new Session(job)
  await session.hello()
  await session.order(1, url)
  step('The board fetches it')
  show('stop', false)
  for (;;) {
    await sleep(POLL_MS)
    let state
    try {
      state = await look()
    } catch {
      job.onState('The board is busy, or cannot be reached: asking again')
      continue
    }
    const fetched = state.fetched
    if (state.boot != job.before.boot || !fetched || fetched.ended) break
    if (fetched.error) throw new Refused(...fetched.error)
    if (fetched.total) onWritten(fetched.done, fetched.total)
  }
  await follow(true)
}

// --- what has come of it

const differs = (one, other) => ['slot', 'digest', 'release'].some(
  key => String(one[key]) != String(other[key]))

async function follow(needsRestart) {
  const before = job.before
  show('stop', false)
  if (!needsRestart) {
    end('good', 'Done', 'The board has taken it, and needs no restart.')
    return over()
  }
  step(before.reboots ? 'All is well: the board restarts into it' :
    'All is well: the program on the board decides when it restarts')
  const left = Date.now()
  let trial = null
  for (;;) {
    await sleep(POLL_MS)
    let now
    try {
      now = await look()
    } catch {
      if (trial) at('outcome').lastChild.textContent = 'The board is away: it restarts.'
      else if (Date.now() - left > AWAY_MS) job.onState(
        'The board has not come back yet: is it in the network again? Asking on')
      continue
    }
    board = now
    showBoard()
    if (now.boot == before.boot) continue
    if (!differs(now, before)) {
      end('bad', `The board went back to ${releaseText(now)}`,
        'The new version did not come up, or nobody confirmed it in its first boot.')
      break
    }
    if (now.state != 'trial') {
      end('good', `${releaseText(now)} runs and is confirmed`, `In slot ${now.slot}, for ${ago(now.up)}.`)
      break
    }
    if (trial != now.boot) {
      trial = now.boot
      end('wait', `${releaseText(now)} runs, and is not confirmed yet`, now.buttons ?
        'Confirm it, or go back: above.' : 'The program on the board confirms it once it finds itself healthy.',
        'Without that the next restart brings back the version before.')
    }
  }
  at('outcome').focus()
  over()
}

async function order(what, doing) {
  const own = {secret: at('secret').value, onState: () => {}, isStopped: false}
  remember()
  try {
    const session = new Session(own)
    await session.hello()
    await session.order(what)
    soon = 20  // looks: it restarts, perhaps
    if (!job) end('wait', doing)
  } catch (error) {
    if (!(error instanceof Gone)) {
      end('bad', 'The board has not done it', error.message, HINTS[error.code])
      if (!job) show('ask', board.flags & 1)
    }
  }
  refresh()
}

// --- wiring

at('file').addEventListener('change', () => choose(at('file').files[0]))
at('file').addEventListener('click', () => {
  at('file').value = ''  // the same name again is a new file, perhaps
  setTimeout(() => {
    if (document.hasFocus() && !at('file').files.length) show('chooser')
  }, 2500)
})
for (const name of ['dragover', 'dragleave', 'drop']) at('drop').addEventListener(name, event => {
  event.preventDefault()
  at('drop').classList.toggle('over', name == 'dragover')
  if (name == 'drop') choose(event.dataTransfer.files[0])
})
at('url').addEventListener('input', offer)
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
at('confirm').addEventListener('click', () => order(2, 'The board confirms what runs'))
at('back').addEventListener('click', () => {
  if (confirm('Go back to the version before? The board restarts.')) order(3, 'The board restarts into the version before')
})
addEventListener('beforeunload', event => {
  if (job && !at('going').hidden) event.preventDefault()
})
try {
  at('secret').value = sessionStorage.getItem('secret') || ''
} catch {}
refresh()
