//! A tiny HTTP/1.1 server on loopback whose answers a closure decides; it writes down every request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    /// With its query.
    pub(super) path: String,
    headers: HashMap<String, String>,
    pub(super) body: String,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The bytes `first..=last` of a `Range` header.
    fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

#[derive(Debug, Clone)]
pub(super) enum Body {
    Bytes(Vec<u8>),
    /// Announces so many bytes, sends these and hangs up.
    Short(usize, Vec<u8>),
    /// Without a length, and never ending.
    Endless,
    /// Nothing ever comes, not even a head.
    Silence,
}

#[derive(Debug, Clone)]
pub(super) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
    wait: Duration,
}

impl Reply {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        let body = Body::Bytes(body.into());
        Reply {
            status,
            headers: Vec::new(),
            body,
            wait: Duration::ZERO,
        }
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(super) fn body(mut self, body: Body) -> Reply {
        self.body = body;
        self
    }

    pub(super) fn after(mut self, wait: Duration) -> Reply {
        self.wait = wait;
        self
    }

    /// `data`, or the part that `request` asks for.
    pub(super) fn part(request: &Request, data: &[u8]) -> Reply {
        match request.range() {
            None => Reply::new(200, data),
            Some((first, last)) => Reply::new(206, &data[first..=last]).with(
                "Content-Range",
                format!("bytes {first}-{last}/{}", data.len()),
            ),
        }
    }
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) host: String,
    log: Arc<Mutex<Vec<Request>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (log, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let requests = log.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                let (requests, answer) = (requests.clone(), answer.clone());
                connections.spawn(async move {
                    let _ = serve(connection, &requests, &*answer).await;
                });
            }
        });
        Server { host, log, task }
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    pub(super) fn paths(&self) -> Vec<String> {
        self.requests().into_iter().map(|r| r.path).collect()
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    connection: TcpStream,
    log: &Mutex<Vec<Request>>,
    answer: &(impl Fn(&Request) -> Reply + Send + Sync),
) -> std::io::Result<()> {
    let mut connection = BufReader::new(connection);
    while let Some(request) = receive(&mut connection).await? {
        log.lock().unwrap().push(request.clone());
        let reply = answer(&request);
        tokio::time::sleep(reply.wait).await;
        let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        match reply.body {
            Body::Bytes(bytes) => {
                head += &format!("Content-Length: {}\r\n\r\n", bytes.len());
                connection.write_all(head.as_bytes()).await?;
                connection.write_all(&bytes).await?;
            }
            Body::Short(announced, bytes) => {
                head += &format!("Content-Length: {announced}\r\n\r\n");
                connection.write_all(head.as_bytes()).await?;
                connection.write_all(&bytes).await?;
                connection.flush().await?;
                return Ok(());
            }
            Body::Endless => {
                head += "Transfer-Encoding: chunked\r\n\r\n";
                connection.write_all(head.as_bytes()).await?;
                let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
                loop {
                    connection.write_all(chunk.as_bytes()).await?;
                    connection.flush().await?;
                }
            }
            Body::Silence => std::future::pending().await,
        }
        connection.flush().await?;
    }
    Ok(())
}

async fn receive(connection: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if connection.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap().into(), words.next().unwrap().into());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), String::from(value));
    }
    let length = headers
        .get("content-length")
        .map_or(0, |l: &String| l.parse().unwrap());
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await?;
    Ok(Some(Request {
        method,
        path,
        headers,
        body: String::from_utf8(body).unwrap(),
    }))
}
