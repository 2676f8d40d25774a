//! Files that get another name: what the journal says of it, and what is true then.

use std::io;
use std::sync::Arc;

use super::{FileSystem, Inode, Key, Nameless, ObjectVersion, Record, Tree, sent};

/// A file's way to another name.
#[derive(Debug)]
struct Move<'a> {
    inode: &'a Arc<Inode>,
    /// The one that its name spells, and the one that it will.
    keys: [Key; 2],
    place: (u64, Arc<str>),
    /// What had the name.
    replaced: Option<&'a Arc<Inode>>,
    overwrites: Option<ObjectVersion>,
    nameless: Nameless,
    /// `None`: neither the journal nor the bucket knows the file.
    record: Option<Record>,
}

impl FileSystem {
    /// Gives a file another name, here and in the journal by one record. What it leaves behind in the bucket is
    /// doomed; what had the name before is to be overwritten, but a file that has other names goes on under one of them.
    pub(crate) fn move_file(
        &self,
        tree: &mut Tree,
        inode: &Arc<Inode>,
        place: (u64, &Arc<str>),
        replaced: Option<&Arc<Inode>>,
        keys: (&Key, &Key),
    ) -> io::Result<()> {
        let link = replaced.and_then(|file| tree.links_to(file.ino).next());
        let Some((file, link)) = replaced.zip(link.as_ref()) else {
            let moved = self.plan_move(tree, inode, place, replaced, keys)?;
            return self.make_moves(tree, [moved]);
        };
        let leaves = self.plan_move_to_link(tree, file, link)?;
        let comes = self.plan_move(tree, inode, place, None, keys)?;
        self.make_moves(tree, [leaves, comes])?;
        self.complete(file.ino);
        Ok(())
    }

    /// Takes the first name of a file away that has another: it goes on under that one.
    pub(crate) fn move_to_link(
        &self,
        tree: &mut Tree,
        file: &Arc<Inode>,
        link: &Arc<Inode>,
    ) -> io::Result<()> {
        let moved = self.plan_move_to_link(tree, file, link)?;
        self.make_moves(tree, [moved])?;
        self.complete(file.ino);
        Ok(())
    }

    fn plan_move_to_link<'a>(
        &self,
        tree: &mut Tree,
        file: &'a Arc<Inode>,
        link: &'a Arc<Inode>,
    ) -> io::Result<Move<'a>> {
        let named = || {
            let (from, to) = (tree.key_of(file.ino)?, tree.key_of(link.ino)?);
            Some((tree.place_of(link.ino)?, from, to))
        };
        let ((parent, name), from, to) = named().ok_or(io::ErrorKind::NotFound)?;
        self.plan_move(tree, file, (parent, &name), Some(link), (&from, &to))
    }

    /// All at once: whoever reads the journal finds that they were all made, or none.
    fn make_moves<const N: usize>(&self, tree: &mut Tree, moves: [Move<'_>; N]) -> io::Result<()> {
        let records = moves.iter().filter_map(|moved| moved.record.clone());
        let records: Vec<Record> = records.collect();
        match &records[..] {
            [] => {}
            [one] => self.journal.complete(one)?,
            _ => self.journal.complete(&Record::Together(records))?,
        }
        for moved in moves {
            self.make_move(tree, moved);
        }
        Ok(())
    }

    /// What [`FileSystem::make_move`] is to do, and what the journal has to say of it.
    fn plan_move<'a>(
        &self,
        tree: &mut Tree,
        inode: &'a Arc<Inode>,
        (parent, name): (u64, &Arc<str>),
        replaced: Option<&'a Arc<Inode>>,
        (from, to): (&Key, &Key),
    ) -> io::Result<Move<'a>> {
        let mut nameless = Nameless::default();
        let mut overwrites = None;
        if let Some(replaced) = replaced {
            let is_settled = tree.settled_key_of(replaced.ino).is_some();
            let state = replaced.state.lock();
            self.keep_open(replaced.ino, &state);
            nameless.in_doubt = state.attempt.clone();
            overwrites = state.occupant(to).filter(|_| is_settled);
            match &state.remote {
                Some(remote) if remote.key != *to || !is_settled => {
                    nameless.doomed.push(sent(remote));
                    let orphan = (remote.key.clone(), Arc::clone(replaced));
                    nameless.orphans.push(orphan);
                }
                // Whoever has it open reads it there until it is overwritten.
                Some(_) if state.opens > 0 => {
                    nameless.orphans.push((to.clone(), Arc::clone(replaced)));
                }
                _ => {}
            }
        }
        self.place_in_journal(tree, parent)?;
        if let Some(replaced) = replaced {
            tree.keep_unnamed(replaced.ino);
        }
        let before = inode.state.lock().overwrites.clone();
        if let Some(version) = before {
            self.leave_overwritten(tree, from, version, &mut nameless);
        }
        let mut state = inode.state.lock();
        let doomed = std::mem::take(&mut nameless.doomed);
        let is_known = state.journaled || state.remote.is_some();
        let record = if is_known || replaced.is_some() || !doomed.is_empty() {
            self.note_changed(inode.ino, &mut state)?;
            Some(Record::Renamed {
                ino: inode.ino,
                parent,
                name: tree.stored_name(name).into_owned(),
                is_directory: false,
                replaced: replaced.map(|replaced| replaced.ino),
                overwrites: overwrites.clone(),
                doomed,
                in_doubt: nameless.in_doubt.clone(),
            })
        } else {
            None
        };
        drop(state);
        Ok(Move {
            inode,
            keys: [from.clone(), to.clone()],
            place: (parent, Arc::clone(name)),
            replaced,
            overwrites,
            nameless,
            record,
        })
    }

    /// Gives a file another name here; the journal has been told.
    fn make_move(&self, tree: &mut Tree, moved: Move<'_>) {
        let Move {
            inode,
            keys,
            place: (parent, name),
            replaced,
            overwrites,
            mut nameless,
            ..
        } = moved;
        inode.state.lock().overwrites = overwrites;
        self.journal.note_place(inode.ino, parent, &name);
        if let Some(replaced) = replaced {
            self.count_no_more(replaced);
        }
        self.count_moved(&[inode], keys.each_ref());
        let alone = replaced.and_then(|replaced| tree.remove_link(replaced.ino));
        tree.rename(inode.ino, parent, &name, self.now());
        tree.note_place(inode, self.now());
        if let Some(replaced) = replaced {
            tree.note_place(replaced, self.now());
            self.settle(replaced.ino, &mut replaced.state.lock());
        }
        // It may be the one that was moved.
        if let Some(alone) = alone {
            self.settle_alone(&alone);
        }
        let doubted = self.doubted(tree, nameless.in_doubt);
        nameless.orphans.extend(doubted);
        self.add_orphans(tree, nameless.orphans);
    }
}
