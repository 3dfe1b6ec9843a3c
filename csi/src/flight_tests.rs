use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn operation(name: &'static str, request: &str, holds: &[Hold]) -> Operation {
    Operation { name, request: request.as_bytes().to_vec(), holds: holds.to_vec() }
}

fn exclusive(key: &str) -> Hold {
    Hold::Exclusive(key.into())
}

fn shared(key: &str) -> Hold {
    Hold::Shared(key.into())
}

fn flights() -> Flights {
    Flights::new(8, Duration::from_secs(60))
}

/// Starts an operation that ends when the returned `Notify` is told, and waits until it is admitted.
async fn hold_open(flights: &Flights, op: Operation) -> (Arc<Notify>, tokio::task::JoinHandle<Result<u32>>) {
    let (gate, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (f, g, b) = (flights.clone(), gate.clone(), begun.clone());
    let task = tokio::spawn(async move {
        f.run(op, |ctx| async move {
            ctx.stage("waiting at the gate");
            b.notify_one();
            g.notified().await;
            Ok(7)
        })
        .await
    });
    begun.notified().await;
    (gate, task)
}

#[tokio::test]
async fn the_same_call_joins_and_the_work_runs_once() {
    let (flights, runs) = (flights(), Arc::new(AtomicUsize::new(0)));
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let (flights, runs) = (flights.clone(), runs.clone());
            tokio::spawn(async move {
                flights
                    .run(operation("CreateVolume", "a", &[exclusive("volume a")]), |_| async move {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        Ok(runs.fetch_add(1, Ordering::SeqCst))
                    })
                    .await
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), 0);
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn another_operation_is_told_who_is_running_and_at_which_stage() {
    let flights = flights();
    let (gate, first) = hold_open(&flights, operation("DeleteVolume", "a", &[exclusive("volume a")])).await;
    let second =
        flights.run(operation("CreateVolume", "a", &[exclusive("volume a")]), |_| async { Ok(()) }).await;
    let text = second.unwrap_err().to_string();
    assert!(text.contains("volume a: DeleteVolume has been running"), "{text}");
    assert!(text.contains("stage: waiting at the gate"), "{text}");
    gate.notify_one();
    assert_eq!(first.await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn shared_holds_do_not_exclude_each_other_but_exclude_an_exclusive_one() {
    let flights = flights();
    let clone_1 = operation("CreateVolume", "1", &[exclusive("volume 1"), shared("volume source")]);
    let (gate, first) = hold_open(&flights, clone_1).await;
    let clone_2 = operation("CreateVolume", "2", &[exclusive("volume 2"), shared("volume source")]);
    assert!(flights.run(clone_2, |_| async { Ok(()) }).await.is_ok());
    let delete = operation("DeleteVolume", "s", &[exclusive("volume source")]);
    assert_eq!(flights.run(delete, |_| async { Ok(()) }).await.unwrap_err().label(), "busy");
    gate.notify_one();
    first.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_work_goes_on_when_the_caller_goes_away_and_a_retry_joins_it() {
    let flights = flights();
    let op = operation("CreateVolume", "a", &[exclusive("volume a")]);
    let (gate, caller) = hold_open(&flights, op.clone()).await;
    caller.abort();
    let retry = tokio::spawn({
        let flights = flights.clone();
        async move { flights.run(op, |_| async { Ok(1_u32) }).await }
    });
    tokio::task::yield_now().await;
    gate.notify_one();
    assert_eq!(retry.await.unwrap().unwrap(), 7, "the retry got the first call's result");
}

#[tokio::test]
async fn a_panic_is_an_internal_error_and_lets_go() {
    let flights = flights();
    let op = operation("CreateVolume", "a", &[exclusive("volume a")]);
    let answer = flights.run(op.clone(), |_| async { if true { panic!("boom") } else { Ok(()) } }).await;
    assert_eq!(answer.unwrap_err().label(), "internal");
    assert!(flights.run(op, |_| async { Ok(()) }).await.is_ok());
}

#[tokio::test]
async fn draining_waits_then_asks_to_end_and_counts_what_remains() {
    let flights = flights();
    let (gate, _task) = hold_open(&flights, operation("CreateVolume", "a", &[exclusive("volume a")])).await;
    assert_eq!(flights.drain(Duration::from_millis(10)).await, 1);
    gate.notify_one();
    assert_eq!(flights.drain(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn no_more_than_the_allowed_number_work_at_once() {
    let flights = Flights::new(2, Duration::from_secs(60));
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let calls: Vec<_> = (0..8)
        .map(|i| {
            let (flights, now, most) = (flights.clone(), now.clone(), most.clone());
            let op = operation("CreateVolume", &i.to_string(), &[exclusive(&format!("volume {i}"))]);
            tokio::spawn(async move {
                flights
                    .run(op, |_| async move {
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        now.fetch_sub(1, Ordering::SeqCst);
                        Ok(())
                    })
                    .await
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
}
