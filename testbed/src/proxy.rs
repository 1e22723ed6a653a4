//! A TCP proxy on loopback that does to a connection what networks do: it resets, refuses, stalls in one direction or both, and
//! cuts after so many bytes, or around a message of the client's.
//!
//! ```text
//!            ┌─ up ───▶
//! client ── proxy ── upstream
//!            ◀── down ┘
//! ```
//! What is stalled is not lost: it arrives late, when the stall is over, even if the client has long been replaced. That is how a
//! partition gives a dead leader's requests to a broker.

use std::collections::HashSet;
use std::fmt;
use std::io::{Error, ErrorKind};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

const BUFFER_BYTES: usize = 16 * 1024;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the upstream.
    Up,
    /// From the upstream to the client.
    Down,
}

impl Direction {
    /// Both ways.
    pub const BOTH: [Direction; 2] = [Direction::Up, Direction::Down];

    fn index(self) -> usize {
        match self {
            Direction::Up => 0,
            Direction::Down => 1,
        }
    }
}

/// When a connection is cut around a message of the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// Nothing of the message has reached the upstream.
    Before,
    /// Half of it has.
    Within,
    /// All of it is on its way there, and the cut comes at once.
    Sent,
    /// The upstream has answered it, and the answer never reaches the client.
    Answered,
}

impl Moment {
    /// All of them.
    pub const ALL: [Moment; 4] = [Moment::Before, Moment::Within, Moment::Sent, Moment::Answered];
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Moment::Before => "before it",
            Moment::Within => "in the middle of it",
            Moment::Sent => "after it",
            Moment::Answered => "before its answer",
        })
    }
}

/// A proxy in front of one port. It ends, with all its connections, when this value is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    /// The port of the upstream.
    upstream: AtomicU16,
    rules: watch::Sender<Rules>,
    /// Bytes that may still pass before a connection is cut, per direction.
    left: [Mutex<Option<usize>>; 2],
    /// The message around which the connection that carries it is cut.
    around: Mutex<Option<(&'static [u8], Moment)>>,
    /// The local ports of the connections to the upstream: by these the upstream knows them.
    ports: Mutex<HashSet<u16>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Rules {
    stalled: [bool; 2],
    refusing: bool,
    /// Counted up at every cut: connections that are older are reset.
    cuts: u64,
}

impl Proxy {
    /// A proxy on a free port, in front of a port of loopback that need not be open yet.
    pub async fn start(upstream: u16) -> Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("bind a proxy")?;
        let port = listener.local_addr().context("address of a proxy")?.port();
        let shared = Arc::new(Shared {
            upstream: AtomicU16::new(upstream),
            rules: watch::Sender::new(Rules::default()),
            left: Default::default(),
            around: Mutex::default(),
            ports: Mutex::default(),
        });
        let stop = CancellationToken::new();
        tokio::spawn(accept(listener, Arc::clone(&shared), stop.clone()));
        Ok(Proxy { port, shared, _stop: stop.drop_guard() })
    }

    /// Where clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on new connections go to another upstream, as when a service's address moves to another machine.
    pub fn lead_to(&self, upstream: u16) {
        self.shared.upstream.store(upstream, Ordering::Release);
    }

    /// Whether the upstream sees a connection of ours come from this port.
    pub fn owns(&self, local_port: u16) -> bool {
        self.ports().contains(&local_port)
    }

    /// How many connections go through it.
    pub fn connections(&self) -> usize {
        self.ports().len()
    }

    /// Resets every connection. New ones are welcome.
    pub fn cut(&self) {
        self.shared.rules.send_modify(|rules| rules.cuts += 1);
    }

    /// Resets every connection, and every new one, until [`Proxy::heal`].
    pub fn refuse(&self) {
        self.shared.refuse();
    }

    /// Holds back all bytes of one direction, of new connections too, until [`Proxy::heal`].
    pub fn stall(&self, direction: Direction) {
        self.shared.rules.send_modify(|rules| rules.stalled[direction.index()] = true);
    }

    /// Lets so many more bytes pass in one direction, then resets the connection that carries the next one.
    pub fn cut_after(&self, direction: Direction, bytes: usize) {
        *self.shared.left(direction) = Some(bytes);
    }

    /// Whether a [`Proxy::cut_after`] still waits for its byte.
    pub fn cut_pending(&self, direction: Direction) -> bool {
        self.shared.left(direction).is_some()
    }

    /// Waits for this message of a client, sent in one piece, and cuts at that moment of it: all connections, and every new one
    /// until [`Proxy::heal`], so that what has come of it stays as it is for as long as somebody looks.
    pub fn cut_around(&self, message: &'static [u8], moment: Moment) {
        *self.shared.around() = Some((message, moment));
    }

    /// Whether a [`Proxy::cut_around`] has cut.
    pub fn has_cut_around(&self) -> bool {
        self.shared.around().is_none() && self.shared.rules.borrow().refusing
    }

    /// Ends every stall and refusal. What was held back goes on its way.
    pub fn heal(&self) {
        for direction in Direction::BOTH {
            *self.shared.left(direction) = None;
        }
        *self.shared.around() = None;
        self.shared.rules.send_modify(|rules| *rules = Rules { cuts: rules.cuts, ..Rules::default() });
    }

    fn ports(&self) -> std::sync::MutexGuard<'_, HashSet<u16>> {
        self.shared.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn left(&self, direction: Direction) -> std::sync::MutexGuard<'_, Option<usize>> {
        self.left[direction.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn around(&self) -> std::sync::MutexGuard<'_, Option<(&'static [u8], Moment)>> {
        self.around.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where in these bytes the awaited message begins, how long it is, and when to cut. It is awaited no more then.
    fn meets(&self, bytes: &[u8]) -> Option<(usize, usize, Moment)> {
        let mut around = self.around();
        let (message, moment) = (*around)?;
        let begins = bytes.windows(message.len()).position(|window| window == message)?;
        *around = None;
        Some((begins, message.len(), moment))
    }

    fn refuse(&self) {
        self.rules.send_modify(|rules| {
            rules.refusing = true;
            rules.cuts += 1;
        });
    }

    /// How many of these bytes may pass.
    fn take(&self, direction: Direction, bytes: usize) -> usize {
        let mut left = self.left(direction);
        match *left {
            None => bytes,
            Some(allowed) if allowed >= bytes => {
                *left = Some(allowed - bytes);
                bytes
            }
            Some(allowed) => {
                *left = None;
                allowed
            }
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => client,
                // The client has gone away again, or there are too many files open: nothing that this proxy could do.
                Err(_) => continue,
            },
            () = stop.cancelled() => return,
        };
        tokio::spawn(carry(client, Arc::clone(&shared), stop.clone()));
    }
}

/// One connection, from its beginning to its end.
async fn carry(mut client: TcpStream, shared: Arc<Shared>, stop: CancellationToken) {
    let mut rules = shared.rules.subscribe();
    let Rules { refusing, cuts, .. } = *rules.borrow();
    let upstream = shared.upstream.load(Ordering::Acquire);
    let server = if refusing { None } else { TcpStream::connect(("127.0.0.1", upstream)).await.ok() };
    let Some(mut server) = server else {
        reset(&client);
        return;
    };
    let registered = Registered::new(&shared, &server);
    for stream in [&client, &server] {
        // A stream without it is slower, and still right.
        stream.set_nodelay(true).ok();
    }
    let ended_in_order = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let withheld = AtomicBool::new(false);
        let both = async {
            tokio::try_join!(
                pump(from_client, to_server, &shared, Direction::Up, &withheld),
                pump(from_server, to_client, &shared, Direction::Down, &withheld),
            )
        };
        tokio::select! {
            ended = both => ended.is_ok(),
            _ = rules.wait_for(|rules| rules.cuts > cuts) => false,
            () = stop.cancelled() => false,
        }
    };
    drop(registered);
    if !ended_in_order {
        reset(&client);
        reset(&server);
    }
}

/// An end without a goodbye: what was not yet delivered is thrown away, and the other side gets an error.
fn reset(stream: &TcpStream) {
    // Then it ends with a goodbye, which is an end too.
    stream.set_zero_linger().ok();
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    shared: &Shared,
    direction: Direction,
    withheld: &AtomicBool,
) -> std::io::Result<()> {
    let mut rules = shared.rules.subscribe();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        until_stalled(&mut rules, direction, false).await;
        let read = tokio::select! {
            read = from.read(&mut buffer) => read?,
            () = until_stalled(&mut rules, direction, true) => continue,
        };
        until_stalled(&mut rules, direction, false).await;
        if read == 0 {
            return to.shutdown().await;
        }
        if direction == Direction::Down && withheld.load(Ordering::Acquire) {
            shared.refuse();
            return Err(Error::from(ErrorKind::ConnectionReset));
        }
        if direction == Direction::Up
            && let Some((begins, length, moment)) = shared.meets(&buffer[..read])
        {
            let passes = match moment {
                Moment::Before => begins,
                Moment::Within => begins + length / 2,
                Moment::Sent | Moment::Answered => read,
            };
            withheld.store(moment == Moment::Answered, Ordering::Release);
            to.write_all(&buffer[..passes]).await?;
            if moment == Moment::Answered {
                continue;
            }
            shared.refuse();
            return Err(Error::from(ErrorKind::ConnectionReset));
        }
        let allowed = shared.take(direction, read);
        to.write_all(&buffer[..allowed]).await?;
        if allowed < read {
            return Err(Error::from(ErrorKind::ConnectionReset));
        }
    }
}

/// Waits until a direction is stalled, or is not.
async fn until_stalled(rules: &mut watch::Receiver<Rules>, direction: Direction, stalled: bool) {
    // The sender lives as long as the connections.
    rules.wait_for(|rules| rules.stalled[direction.index()] == stalled).await.ok();
}

/// A connection in the list, as long as it lives.
struct Registered<'a> {
    shared: &'a Shared,
    port: Option<u16>,
}

impl<'a> Registered<'a> {
    fn new(shared: &'a Shared, server: &TcpStream) -> Registered<'a> {
        let port = server.local_addr().ok().map(|address| address.port());
        shared.ports.lock().unwrap_or_else(PoisonError::into_inner).extend(port);
        Registered { shared, port }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if let Some(port) = self.port {
            self.shared.ports.lock().unwrap_or_else(PoisonError::into_inner).remove(&port);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(20);

    /// An upstream that sends back what it gets, and a proxy in front of it.
    async fn echo() -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await.ok();
                });
            }
        });
        Proxy::start(port).await.unwrap()
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap()
    }

    async fn says(stream: &mut TcpStream, word: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(word).await?;
        let mut answer = vec![0; word.len()];
        timeout(LONG, stream.read_exact(&mut answer)).await.expect("an answer or an error")?;
        Ok(answer)
    }

    async fn is_reset(stream: &mut TcpStream) -> bool {
        let mut rest = Vec::new();
        timeout(LONG, stream.read_to_end(&mut rest)).await.unwrap().is_err()
    }

    #[tokio::test]
    async fn what_is_sent_arrives_and_an_end_is_passed_on() {
        let proxy = echo().await;
        let mut client = connect(&proxy).await;
        assert_eq!(says(&mut client, b"hello").await.unwrap(), b"hello");
        assert_eq!(proxy.connections(), 1);
        client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        timeout(LONG, client.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert!(rest.is_empty());
        while proxy.connections() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_cut_resets_what_is_there_and_a_refusal_also_what_comes() {
        let proxy = echo().await;
        let mut client = connect(&proxy).await;
        says(&mut client, b"a").await.unwrap();
        proxy.cut();
        assert!(is_reset(&mut client).await);
        let mut client = connect(&proxy).await;
        says(&mut client, b"a").await.unwrap();
        proxy.refuse();
        assert!(is_reset(&mut client).await);
        let mut refused = connect(&proxy).await;
        assert!(is_reset(&mut refused).await);
        proxy.heal();
        let mut client = connect(&proxy).await;
        assert_eq!(says(&mut client, b"b").await.unwrap(), b"b");
    }

    #[tokio::test]
    async fn what_is_stalled_arrives_late() {
        for direction in Direction::BOTH {
            let proxy = echo().await;
            let mut client = connect(&proxy).await;
            says(&mut client, b"a").await.unwrap();
            proxy.stall(direction);
            client.write_all(b"late").await.unwrap();
            let mut answer = [0; 4];
            assert!(timeout(SHORT, client.read_exact(&mut answer)).await.is_err(), "{direction:?}");
            proxy.heal();
            timeout(LONG, client.read_exact(&mut answer)).await.unwrap().unwrap();
            assert_eq!(&answer, b"late");
        }
    }

    #[tokio::test]
    async fn a_connection_is_cut_at_the_byte() {
        let proxy = echo().await;
        let mut client = connect(&proxy).await;
        proxy.cut_after(Direction::Down, 5);
        assert_eq!(says(&mut client, b"12345").await.unwrap(), b"12345");
        assert!(proxy.cut_pending(Direction::Down));
        assert!(says(&mut client, b"6").await.is_err());
        assert!(!proxy.cut_pending(Direction::Down));
        let mut client = connect(&proxy).await;
        assert_eq!(says(&mut client, b"once only").await.unwrap(), b"once only");
    }

    #[tokio::test]
    async fn a_connection_is_cut_around_a_message_and_what_has_reached_the_upstream_is_what_was_asked_for() {
        for (moment, reaches) in [
            (Moment::Before, &b"one "[..]),
            (Moment::Within, b"one CO"),
            (Moment::Sent, b"one COMM"),
            (Moment::Answered, b"one COMM"),
        ] {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let proxy = Proxy::start(listener.local_addr().unwrap().port()).await.unwrap();
            let mut client = connect(&proxy).await;
            let (mut upstream, _) = listener.accept().await.unwrap();
            proxy.cut_around(b"COMM", moment);
            client.write_all(b"one COMM").await.unwrap();
            let mut got = vec![0; reaches.len()];
            timeout(LONG, upstream.read_exact(&mut got)).await.unwrap().unwrap();
            assert_eq!(got, reaches, "{moment}");
            if moment == Moment::Answered {
                assert!(!proxy.has_cut_around());
                upstream.write_all(b"done").await.unwrap();
            }
            assert!(is_reset(&mut client).await, "{moment}");
            assert!(proxy.has_cut_around());
            let mut refused = connect(&proxy).await;
            assert!(is_reset(&mut refused).await);
            proxy.heal();
            assert!(!proxy.has_cut_around());
        }
    }

    #[tokio::test]
    async fn new_connections_go_where_the_address_has_moved_to() {
        let (proxy, other) = (echo().await, echo().await);
        let mut before = connect(&proxy).await;
        says(&mut before, b"a").await.unwrap();
        proxy.lead_to(other.port());
        let mut after = connect(&proxy).await;
        assert_eq!(says(&mut after, b"b").await.unwrap(), b"b");
        assert_eq!((proxy.connections(), other.connections()), (2, 1));
        assert_eq!(says(&mut before, b"c").await.unwrap(), b"c");
    }

    #[tokio::test]
    async fn nothing_goes_through_a_proxy_that_is_gone() {
        let proxy = echo().await;
        let mut client = connect(&proxy).await;
        says(&mut client, b"a").await.unwrap();
        drop(proxy);
        assert!(is_reset(&mut client).await);
    }
}
