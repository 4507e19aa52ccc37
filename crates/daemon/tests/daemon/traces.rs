//! Request ids, lines of the audit log, and spans that reach a collector.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use evidenceos_proto as wire;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value,
    trace::v1::Span,
};
use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status};

use crate::{
    harness::{Client, Daemon, block_on, header, terms},
    process::{Serving, block_on_value, signal},
};

#[test]
fn an_answer_has_the_id_of_its_call_or_one_of_ours() {
    block_on(async {
        let daemon = Daemon::start().await;
        let client = daemon.operator().await;
        let id = |answer: &tonic::metadata::MetadataMap| {
            let id = answer.get("x-request-id").expect("an id");
            id.to_str().expect("ascii").to_owned()
        };
        let info = wire::GetServerInfoRequest {};
        let mut inner = client.inner.clone();
        let named = client.with_id("call-7").request(info);
        let answer = inner.get_server_info(named).await.expect("answers");
        assert_eq!(id(answer.metadata()), "call-7");
        let refused = client
            .with_id("call-8")
            .request(wire::GetClaimRequest::default());
        let refusal = inner.get_claim(refused).await.expect_err("no such claim");
        assert_eq!(id(refusal.metadata()), "call-8");
        let mut own = Vec::new();
        for _ in 0..2 {
            let answer = inner.get_server_info(info).await.expect("answers");
            own.push(id(answer.metadata()));
        }
        assert!(
            own.iter().all(|id| id.starts_with("own-")) && own[0] != own[1],
            "{own:?}"
        );
    });
}

/// A collector that hands on what it is sent.
struct Collector(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        for span in scopes.flat_map(|scope| scope.spans) {
            let _ = self.0.send(span);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text_of<'s>(span: &'s Span, key: &str) -> Option<&'s str> {
    let attribute = span.attributes.iter().find(|pair| pair.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text),
        _ => None,
    }
}

#[test]
fn spans_reach_a_collector_and_the_audit_log_says_who_called_what() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("daemon.log");
    let (sender, mut spans) = mpsc::unbounded_channel();
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let spans = block_on_value(async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let collector = listener.local_addr().expect("an address");
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let serving = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Collector(sender)))
            .serve_with_incoming(incoming);
        let serving = tokio::spawn(serving);

        let mut child = Command::new(env!("CARGO_BIN_EXE_evidenceos-daemon"))
            .args(["--listen", "127.0.0.1:0", "--preflight-listen", "off"])
            .args(["--metrics-listen", "off", "--log-format", "json"])
            .args(["--log", "warn,evidenceos_audit=debug", "--data-dir"])
            .arg(directory.path().join("data"))
            .args(["--otlp-endpoint", &format!("http://{collector}")])
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).expect("made"))
            .spawn()
            .expect("starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        let mut child = Serving::of(child);
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let address = line
            .split_whitespace()
            .find(|word| word.parse::<std::net::SocketAddr>().is_ok());
        let client = Client::connect(address.expect("an address"), None).await;
        let mut put = client.with_id("put-1");
        put.put(header("h"), &crate::harness::labels("h"))
            .await
            .expect("registered");
        let created = client
            .with_id("create-1")
            .create(terms("c", "h"))
            .await
            .expect("created");
        client.with_id("get-1").get(&created).await.expect("there");
        let mut asked = client.with_id("ask-1").request(wire::GetClaimRequest {
            claim_id: vec![7; 32].into(),
        });
        let parent = format!("00-{trace_id}-b7ad6b7169203331-01");
        let parent = parent.parse().expect("ascii");
        asked.metadata_mut().insert("traceparent", parent);
        let refused = client.inner.clone().get_claim(asked).await;
        assert_eq!(refused.expect_err("no such claim").code(), Code::NotFound);
        // What is left is sent at the end.
        signal(&child, "TERM");
        assert_eq!(child.wait().expect("ends").code(), Some(0));
        serving.abort();
        let _ = serving.await;
        let mut all = Vec::new();
        while let Some(span) = spans.recv().await {
            all.push(span);
        }
        let text = fs::read_to_string(&log).expect("a log");
        audited(&text);
        all
    });
    let of = |id: &str| {
        let mut found = spans
            .iter()
            .filter(|span| text_of(span, "request_id") == Some(id));
        let span = found.next().unwrap_or_else(|| panic!("{id}: {spans:#?}"));
        assert!(found.next().is_none(), "one span a call");
        span
    };
    assert_eq!(of("put-1").name, "PutHoldout");
    let asked = of("ask-1");
    assert_eq!(asked.name, "GetClaim");
    assert_eq!(hex::encode(&asked.trace_id), trace_id);
    assert_eq!(hex::encode(&asked.parent_span_id), "b7ad6b7169203331");
}

/// One line a call, with who, what and how it ended, and nothing of what was sent.
fn audited(log: &str) {
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .filter(|line: &serde_json::Value| line["target"] == "evidenceos_audit")
        .collect();
    let of = |id: &str| {
        let line = lines.iter().find(|line| line["fields"]["request_id"] == id);
        &line.unwrap_or_else(|| panic!("{id}: {log}"))["fields"]
    };
    assert_eq!(of("put-1")["method"], "PutHoldout");
    assert_eq!(of("put-1")["code"], "Ok");
    assert_eq!(of("put-1")["holdout"], "h");
    assert_eq!(of("ask-1")["claim"], "07".repeat(32));
    assert_eq!(of("ask-1").get("holdout"), None, "nobody's claim");
    let created = of("create-1");
    assert_eq!(
        (&created["method"], &created["holdout"]),
        (&"CreateClaimV2".into(), &"h".into())
    );
    let claim = created["claim"].as_str().expect("an id");
    assert_eq!(claim.len(), 64);
    assert_eq!(
        (&of("get-1")["claim"], &of("get-1")["holdout"]),
        (&claim.into(), &"h".into())
    );
    assert_eq!(of("ask-1")["code"], "NotFound");
    let caller = of("put-1")["caller"].as_str().expect("somebody");
    assert_eq!(
        (caller.len(), caller),
        (32, of("ask-1")["caller"].as_str().expect("the same"))
    );
}
