// The page: what it shows, and what it does when somebody asks for it.
const STATES = {confirmed: ['Confirmed', 'good'], trial: ['On trial', 'wait'],
  waiting: ['Update is ready', 'wait'], updating: ['Is being updated', 'wait']}
HINTS.busy = 'Somebody else is sending an update: another tab, another page, or the board fetches one. Try again when that is over.'
const HINT = at('hint').textContent
const POLL_MS = 500, IDLE_MS = 5000, AWAY_MS = 90000

let board = null  // what it said last
let poll = null, soon = 0  // looks that follow each other at once

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
  showJudged(true)
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

function onWritten(position, size, isAll) {
  if (isAll) showAllWritten()
  else showWritten(position, size, position, ago)
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
  endBy(error)
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

wire(choose, start)
at('file').addEventListener('click', () => {
  at('file').value = ''  // the same name again is a new file, perhaps
  setTimeout(() => {
    if (document.hasFocus() && !at('file').files.length) show('chooser')
  }, 2500)
})
at('url').addEventListener('input', offer)
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
