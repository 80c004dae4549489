//! Measures acknowledged writes a second with 1 and 16 writers: `cargo run --release -p causeway-store --example writes`.

use causeway_store::{SledOptions, SledStore, Store};
use std::sync::Arc;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        for writers in [1usize, 16] {
            let dir = tempfile::tempdir()?;
            let store = Arc::new(SledStore::open(dir.path(), SledOptions::default())?);
            let each = 8000 / writers;
            let begin = Instant::now();
            let tasks: Vec<_> = (0..writers)
                .map(|w| {
                    let store = store.clone();
                    tokio::spawn(async move {
                        for i in 0..each {
                            store.create(&format!("/bench/{w}-{i}"), vec![b'x'; 1024].into()).await?;
                        }
                        Ok::<(), causeway_store::StoreError>(())
                    })
                })
                .collect();
            for task in tasks {
                task.await??;
            }
            let rate = (each * writers) as f64 / begin.elapsed().as_secs_f64();
            println!("{writers:>2} writers: {rate:.0} synced writes/s of 1 KiB");
        }
        Ok(())
    })
}
