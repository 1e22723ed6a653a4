//! A registry that hangs, errs or refuses.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use schema::{
    decode::{DecodeError, Decoder, Event},
    psp_result_update::PspResultUpdateEvent,
    registry::{Registry, RegistryError},
};
use testbed::stack::Stack;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// A server that gives these answers, one per request, the last one for ever; None: no answer at all.
async fn server(answers: Vec<Option<(u16, String)>>) -> anyhow::Result<(String, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let answer = answers[counter.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)].clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                drop(socket.read(&mut request).await);
                match answer {
                    Some((status, body)) => {
                        let text = format!(
                            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                            body.len()
                        );
                        drop(socket.write_all(text.as_bytes()).await);
                    }
                    None => tokio::time::sleep(Duration::from_mins(1)).await,
                }
            });
        }
    });
    Ok((url, requests))
}

fn found() -> (u16, String) {
    (200, serde_json::json!({ "schema": PspResultUpdateEvent::SCHEMA }).to_string())
}

#[tokio::test]
async fn a_passing_error_is_forgotten_at_once() -> anyhow::Result<()> {
    for status in [500, 502, 503, 504, 429, 401, 403] {
        let (url, _) = server(vec![Some((status, "{}".to_owned())), Some(found())]).await?;
        let registry = Registry::new(&url)?;
        let error = registry.schema_by_id(1).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unavailable(_)), "{status}: {error}");
        registry.schema_by_id(1).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_is_kept_and_a_missing_id_is_not_asked_for_again_and_again() -> anyhow::Result<()> {
    let (url, requests) =
        server(vec![Some(found()), Some((404, r#"{"error_code":40403,"message":"x"}"#.to_owned()))]).await?;
    let registry = Registry::new(&url)?;
    for _ in 0..10 {
        registry.schema_by_id(1).await?;
    }
    for _ in 0..10 {
        assert!(matches!(registry.schema_by_id(2).await, Err(RegistryError::NotFound(_))));
    }
    assert_eq!(requests.load(Ordering::SeqCst), 2);
    Ok(())
}

#[tokio::test]
async fn a_registry_that_hangs_is_left_after_a_few_seconds_and_the_record_waits() -> anyhow::Result<()> {
    let (url, _) = server(vec![None]).await?;
    let decoder = Decoder::<PspResultUpdateEvent>::new(Arc::new(Registry::new(&url)?))?;
    let started = Instant::now();
    let error = decoder.decode(Some(&[0, 0, 0, 0, 1, 2])).await.unwrap_err();
    assert!(matches!(error, DecodeError::Wait(_)), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_registry_that_is_not_there_makes_the_record_wait() -> anyhow::Result<()> {
    let decoder = Decoder::<PspResultUpdateEvent>::new(Arc::new(Registry::new("http://127.0.0.1:1")?))?;
    assert!(matches!(decoder.decode(Some(&[0, 0, 0, 0, 1, 2])).await, Err(DecodeError::Wait(_))));
    Ok(())
}

#[tokio::test]
async fn schemas_are_registered_once_looked_up_and_guarded() -> anyhow::Result<()> {
    let stack = Stack::get().await?;
    let registry = Registry::new(&stack.registry_url())?;
    let subject = stack.unique("registry");
    let schema = PspResultUpdateEvent::SCHEMA;
    assert!(matches!(registry.id_of(&subject, schema).await, Err(RegistryError::NotFound(_))));
    let id = registry.register(&subject, schema).await?;
    assert_eq!(registry.register(&subject, schema).await?, id);
    assert_eq!(registry.id_of(&subject, schema).await?, id);
    assert!(registry.schema_by_id(id).await?.name().is_some());
    let breaking = schema.replace(r#"{"type": "string", "logicalType": "uuid"}"#, r#""long""#);
    assert_ne!(breaking, schema);
    assert!(matches!(registry.register(&subject, &breaking).await, Err(RegistryError::Refused(_))));
    let compatible =
        schema.replace(r#""fields": ["#, r#""fields": [{"name": "attempt", "type": "int", "default": 1},"#);
    assert_ne!(registry.register(&subject, &compatible).await?, id);
    assert!(matches!(
        registry.register(&subject, "{}").await,
        Err(RegistryError::Refused(_) | RegistryError::Unavailable(_))
    ));
    Ok(())
}
