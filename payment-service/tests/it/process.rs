//! The program itself: killed, asked to stop, started with wrong settings.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::world::{TRANSITIONS, World, result};

fn spawn(world: &World, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_payment-service"))
        .arg("run")
        .args(world.arguments(more))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn terminate(child: &Child) {
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[tokio::test]
async fn killed_again_and_again_it_loses_nothing_and_applies_nothing_twice() {
    let world = World::new().await;
    let orders = world.orders(1_500).await;
    let instance = ["--consumer-instance", "one", "--batch-max", "7"];
    let mut child = spawn(&world, &instance);
    for (number, part) in orders.chunks(300).enumerate() {
        let events: Vec<_> = part.iter().map(|order| result(*order, "SUCCESSFUL")).collect();
        let sending = world.send_all(&events);
        let killing = async {
            // Long enough to be in the middle of its work, which is small batches one after the other.
            tokio::time::sleep(Duration::from_millis(400 + 130 * u64::try_from(number).unwrap())).await;
            child.kill().unwrap();
            child.wait().unwrap();
        };
        tokio::join!(sending, killing);
        child = spawn(&world, &instance);
    }
    world.until(TRANSITIONS, 1_500).await;
    assert_eq!(world.applied_twice().await, 0);
    assert_eq!(
        world.count("SELECT count(*) FROM payments.payment_orders WHERE state = 'SUCCESSFUL'").await,
        1_500
    );

    terminate(&child);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "a clean end");
    assert!(output.stdout.is_empty(), "nothing on stdout");
    assert_eq!(world.committed().await, 1_500);
}

#[tokio::test]
async fn asked_to_stop_while_the_database_does_not_answer_it_stops_all_the_same() {
    let world = World::new().await;
    let order = world.order().await;
    let mut lock = world.pool.acquire().await.unwrap();
    sqlx::query("BEGIN").execute(&mut *lock).await.unwrap();
    sqlx::query("LOCK TABLE payments.processed_events").execute(&mut *lock).await.unwrap();
    world.send(&result(order, "SUCCESSFUL")).await;
    let child = spawn(&world, &[]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    terminate(&child);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(0));
    sqlx::query("ROLLBACK").execute(&mut *lock).await.unwrap();
    assert_eq!((world.count(TRANSITIONS).await, world.committed().await), (0, 0));
}

#[tokio::test]
async fn asked_to_stop_in_the_middle_of_a_backlog_it_finishes_its_batch_and_no_more() {
    let world = World::new().await;
    let orders = world.orders(6_000).await;
    let events: Vec<_> = orders.iter().map(|order| result(*order, "SUCCESSFUL")).collect();
    world.send_all(&events).await;
    let child = spawn(&world, &["--batch-max", "20"]);
    while world.count(TRANSITIONS).await < 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    terminate(&child);
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let output = tokio::time::timeout(Duration::from_secs(10), ended).await.expect("within 10 s").unwrap();
    assert_eq!(output.status.code(), Some(0));
    let applied = world.count(TRANSITIONS).await;
    assert!(applied < 6_000, "there was no backlog any more");
    assert_eq!(world.committed().await, applied, "the next owner begins where this one ended");

    let service = world.start(&[]).await;
    world.until(TRANSITIONS, 6_000).await;
    service.stop().await;
    assert_eq!((world.applied_twice().await, world.committed().await), (0, 6_000));
}

#[tokio::test]
async fn a_taken_port_ends_it_with_an_error() {
    let world = World::new().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let arguments: Vec<String> =
        world.arguments(&[]).into_iter().map(|argument| argument.replace("127.0.0.1:0", &listen)).collect();
    let status = Command::new(env!("CARGO_BIN_EXE_payment-service"))
        .arg("run")
        .args(arguments)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
}

#[tokio::test]
async fn of_two_instances_with_one_name_the_older_gives_way_with_an_error() {
    let world = World::new().await;
    let order = world.order().await;
    let mut first = spawn(&world, &["--consumer-instance", "same"]);
    world.send(&result(order, "PENDING")).await;
    world.until(TRANSITIONS, 1).await;
    let second = spawn(&world, &["--consumer-instance", "same"]);
    let status = tokio::task::spawn_blocking(move || first.wait().unwrap()).await.unwrap();
    assert_eq!(status.code(), Some(1), "whoever watches over the process learns of it");
    world.send(&result(order, "SUCCESSFUL")).await;
    world.until(TRANSITIONS, 2).await;
    terminate(&second);
    let output = tokio::task::spawn_blocking(move || second.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(0));
}
