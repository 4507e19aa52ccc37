//! Bodies that are refused, and the connections that they came on.

use super::*;

/// Every refusal has a status, the same shape, and nothing of what was sent.
#[test]
fn what_is_malformed_is_refused_in_a_constant_shape() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&unlimited(&home)).await;
        let invalid = r#"{"decision":"DENY","reasonCode":"INVALID_INPUT"}"#;
        let good = call("search.web", "s", 1).to_string();
        let large = format!(
            r#"{{"toolName":"a","params":{{"x":"{}"}}}}"#,
            "x".repeat(20_000)
        );
        let deep = format!(
            r#"{{"toolName":"a","params":{}1{}}}"#,
            r#"{"a":"#.repeat(400),
            "}".repeat(400)
        );
        for (headers, body, status) in [
            ("", good.as_bytes(), 400),
            ("x-request-id: a:b\r\n", good.as_bytes(), 400),
            (ID, b"", 400),
            (ID, b"\xff\xfe", 400),
            (ID, b"[1,2", 400),
            (ID, deep.as_bytes(), 400),
            (ID, br#"{"toolName":"a","params":{"n":1e999}}"#, 400),
            (ID, br#"{"toolName":"a","params":[]}"#, 400),
            (ID, large.as_bytes(), 413),
        ] {
            let answer = post(http(&running), PREFLIGHT, headers, body).await;
            assert_eq!(
                (answer.status, answer.body.as_str()),
                (status, invalid),
                "{headers} {}",
                String::from_utf8_lossy(&body[..body.len().min(60)])
            );
            assert!(answer.head.contains("content-length"), "never chunked");
            if headers == ID {
                assert!(answer.head.contains("x-request-id: r-1"), "{}", answer.head);
            }
        }
        for tool in ["exec", "EXEC", "exec ", " Exec", "shell_exec", "exec()"] {
            for session in ["", "  "] {
                let body = json!({ "toolName": tool, "params": {}, "sessionId": session });
                let (status, refused) = ask(&running, "", &body).await;
                assert_eq!(
                    (status, &refused["decision"], &refused["reasonCode"]),
                    (400, &json!("DENY"), &json!("SESSION_REQUIRED")),
                    "{tool:?} {session:?}"
                );
            }
        }
        for tool in [
            "",
            " ",
            "exec\n",
            "exec\u{0}",
            "\u{ff45}xec",
            "ex\u{200b}ec",
        ] {
            let body = json!({ "toolName": tool, "params": {}, "sessionId": "s" });
            let (status, refused) = ask(&running, "", &body).await;
            assert_eq!(
                (status, refused.to_string().as_str()),
                (400, invalid),
                "{tool:?}"
            );
        }
        // The published client's second name of the header, and its second slash.
        let alias = "x-evidenceos-request-id: r-1\r\n";
        let answer = post(
            http(&running),
            "//v1/preflight_tool_call",
            alias,
            good.as_bytes(),
        )
        .await;
        assert_eq!(answer.status, 200);
        running.stop().await.expect("stops");
    });
}

#[test]
fn a_body_that_never_ends_is_not_waited_for_and_nobody_else_waits() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&unlimited(&home)).await;
        let mut slow = TcpStream::connect(http(&running)).await.expect("listens");
        let head = format!(
            "POST {PREFLIGHT} HTTP/1.1\r\nhost: h\r\n{ID}transfer-encoding: chunked\r\n\r\n"
        );
        slow.write_all(head.as_bytes()).await.expect("sent");
        // Larger than any body may be, and no end to it.
        let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
        for _ in 0..8 {
            if slow.write_all(chunk.as_bytes()).await.is_err() {
                break;
            }
        }
        let mut answer = vec![0; 64];
        let read = slow.read(&mut answer).await.expect("an answer");
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        let (status, _) = ask(&running, "", &call("search.web", "s", 1)).await;
        assert_eq!(status, 200);
        running.stop().await.expect("stops");
    });
}

/// The next answer on a connection that goes on: its status.
async fn answered(stream: &mut TcpStream) -> u16 {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer"));
    }
    let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
    let length = head
        .split("content-length: ")
        .nth(1)
        .expect("never chunked");
    let length = length.split("\r\n").next().expect("a line").parse();
    let mut body = vec![0; length.expect("a number")];
    stream.read_exact(&mut body).await.expect("its body");
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    status.expect("a status")
}

/// A gate that asks for a token, and lets nobody admit a module.
async fn strict(home: &Home) -> Running {
    let settings = Settings {
        preflight_require_bearer_token_file: Some(home.file("token", "let-me-in-the-gate\n")),
        preflight_global_rate_limit_rps: Some("0".to_owned()),
        ..unlimited(home)
    };
    home.start(&settings).await
}

#[test]
fn a_refusal_reads_the_body_that_it_does_not_need_and_the_connection_goes_on() {
    block_on(async {
        let home = Home::new();
        let running = strict(&home).await;
        // More than a server finds in its buffer at once; and more than a body may have.
        let (some, most) = (16_000, 60_000);
        let known = "authorization: Bearer let-me-in-the-gate\r\n";
        let mut stream = TcpStream::connect(http(&running)).await.expect("listens");
        for (method, path, headers, body, status) in [
            ("POST", PREFLIGHT, "", some, 401),
            ("POST", POSTFLIGHT, "", most, 413),
            ("POST", "/v1/nothing", "", most, 401),
            ("POST", "/v1/nothing", known, most, 404),
            ("PUT", PREFLIGHT, known, most, 405),
            ("POST", "/livez", "", most, 405),
            ("POST", PREFLIGHT, known, most, 413),
            ("POST", "/v1/aspec_admit", known, most, 429),
            ("GET", "/livez", "", most, 200),
        ] {
            let head = format!(
                "{method} {path} HTTP/1.1\r\nhost: h\r\n{ID}{headers}content-length: {body}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await.expect("open");
            stream.write_all(&vec![b'x'; body]).await.expect("taken");
            assert_eq!(answered(&mut stream).await, status, "{method} {path}");
        }
        running.stop().await.expect("stops");
    });
}

#[test]
fn a_refusal_is_not_kept_waiting_by_a_body_that_does_not_come() {
    block_on(async {
        let home = Home::new();
        let running = strict(&home).await;
        for headers in [
            "content-length: 10\r\n",
            "content-length: 1000000000\r\n",
            // A client that waits to be asked for its body is refused without being asked.
            "content-length: 10\r\nexpect: 100-continue\r\n",
        ] {
            let mut stream = TcpStream::connect(http(&running)).await.expect("listens");
            let head = format!("POST /v1/nothing HTTP/1.1\r\nhost: h\r\n{headers}\r\n");
            stream.write_all(head.as_bytes()).await.expect("open");
            let waited = tokio::time::timeout(Duration::from_secs(60), answered(&mut stream));
            assert_eq!(waited.await.expect("in time"), 401, "{headers}");
        }
        running.stop().await.expect("stops");
    });
}

/// As curl 7 sends it, which takes the end of its stream for an error.
#[test]
fn a_refusal_over_http2_does_not_reset_the_stream_of_a_small_body() {
    block_on(async {
        let home = Home::new();
        let running = strict(&home).await;
        let fields = http2::request(true, PREFLIGHT, &[]);
        let mut connection = TcpStream::connect(http(&running)).await.expect("listens");
        let opening = [
            http2::opening(65_535),
            frame(HEADERS, END_HEADERS, 1, &fields),
            // Another call, without a body: once it is answered, the first was seen as well.
            frame(HEADERS, END_HEADERS | END_STREAM, 3, &fields),
        ];
        connection.write_all(&opening.concat()).await.expect("open");
        loop {
            let next = next_frame(&mut connection).await.expect("a frame");
            let (kind, flags, stream) = (next.kind, next.flags, next.stream);
            let answers = [DATA, HEADERS, RESET].contains(&kind);
            assert!(!(answers && stream == 1), "the body has not come yet");
            if answers && stream == 3 && flags & END_STREAM != 0 {
                break;
            }
        }
        let body = frame(DATA, END_STREAM, 1, &[b'x'; 10_000]);
        let ping = frame(PING, 0, 0, &[0; 8]);
        connection.write_all(&body).await.expect("taken");
        let (mut answered, mut asked, mut settled) = (false, false, false);
        while !settled {
            let next = next_frame(&mut connection).await.expect("a frame");
            let (kind, flags, stream) = (next.kind, next.flags, next.stream);
            assert!(kind != RESET, "stream {stream} was reset");
            answered |= kind == DATA && stream == 1 && flags & END_STREAM != 0;
            settled = kind == PING;
            if answered && !asked {
                asked = true;
                connection.write_all(&ping).await.expect("open");
            }
        }
        running.stop().await.expect("stops");
    });
}
