; The handler that XLA:CPU calls instead of a convolution. It runs a program of oneDNN on XLA's arrays, in place.
;
; It is written in LLVM's language, because a pure Python package has no other way to run code without the
; interpreter: a Python function would wait for the interpreter lock at every call, and could not be called while a
; process ends. The first structures are those of XLA's foreign function interface, `xla/ffi/api/c_api.h`. The last
; ones are created by onednn.py.

%version = type { i64, ptr, i32, i32 }
%metadata = type { i64, %version }
%question = type { i64, i32, ptr, ptr }
%api = type { i64, ptr, %version, ptr, ptr }
%error = type { i64, ptr, ptr, i32 }
%buffer = type { i64, ptr, i32, ptr }
%buffers = type { i64, ptr, i64, ptr, ptr }
%scalar = type { i32, ptr }
%attributes = type { i64, ptr, i64, ptr, ptr, ptr }
%frame = type { i64, ptr, ptr, ptr, i32, %buffers, %buffers, %attributes }

%slot = type { i64, ptr }                            ; key, program
%program = type { ptr, i64, ptr, i64, ptr, i64, i32 } ; outside; number of inside, inside; of steps, steps; bytes; threads
%inside = type { ptr, i64 }                          ; array of the library, its offset in the shared space
%step = type { ptr, i32, ptr }                       ; primitive, number of arguments, arguments; or null, 0, packing
%packing = type { i64, i64, i64, i64, i64 }          ; operand; offset in the space; rows; bytes of a row, of a block
%task = type { ptr, ptr, ptr, i32 }                  ; source, target, a packing, threads
%shared = type { [64 x i8], ptr, ptr, ptr, i64 }     ; lock, stream, space, slots, number of slots less one

@shared = external global %shared
@refused = private constant [31 x i8] c"oneDNN could not run a program\00"

declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @madvise(ptr, i64, i32)
declare void @omp_set_num_threads(i32)
declare i32 @dnnl_memory_set_data_handle(ptr, ptr)
declare i32 @dnnl_primitive_execute(ptr, ptr, i32, ptr)
declare void @GOMP_parallel(ptr, ptr, i32, i32)
declare i32 @omp_get_thread_num()
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define ptr @handle(ptr %frame) {
  %extension.at = getelementptr %frame, ptr %frame, i64 0, i32 1
  %extension = load ptr, ptr %extension.at
  %is.question = icmp ne ptr %extension, null
  br i1 %is.question, label %answer, label %stage

answer: ; written for version 0.3
  %metadata.at = getelementptr %question, ptr %extension, i64 0, i32 3
  %metadata = load ptr, ptr %metadata.at
  %major = getelementptr %metadata, ptr %metadata, i64 0, i32 1, i32 2
  %minor = getelementptr %metadata, ptr %metadata, i64 0, i32 1, i32 3
  store i32 0, ptr %major
  store i32 3, ptr %minor
  ret ptr null

stage:
  %stage.at = getelementptr %frame, ptr %frame, i64 0, i32 4
  %stage.is = load i32, ptr %stage.at
  %is.execute = icmp eq i32 %stage.is, 3
  br i1 %is.execute, label %look.up, label %done

look.up: ; the key is the only attribute
  %attributes.at = getelementptr %frame, ptr %frame, i64 0, i32 7, i32 5
  %attributes = load ptr, ptr %attributes.at
  %scalar = load ptr, ptr %attributes
  %key.at.at = getelementptr %scalar, ptr %scalar, i64 0, i32 1
  %key.at = load ptr, ptr %key.at.at
  %key = load i64, ptr %key.at
  %slots.at = getelementptr %shared, ptr @shared, i64 0, i32 3
  %slots = load ptr, ptr %slots.at
  %mask.at = getelementptr %shared, ptr @shared, i64 0, i32 4
  %mask = load i64, ptr %mask.at
  br label %probe

probe:
  %place = phi i64 [ %key, %look.up ], [ %next.place, %probe.next ]
  %index = and i64 %place, %mask
  %slot = getelementptr %slot, ptr %slots, i64 %index
  %program.at = getelementptr %slot, ptr %slot, i64 0, i32 1
  %program = load ptr, ptr %program.at
  %is.empty = icmp eq ptr %program, null
  br i1 %is.empty, label %fail, label %compare

compare:
  %found = load i64, ptr %slot
  %is.found = icmp eq i64 %found, %key
  br i1 %is.found, label %lock, label %probe.next

probe.next:
  %next.place = add i64 %index, 1
  br label %probe

lock:
  %task = alloca %task
  %ignored = call i32 @pthread_mutex_lock(ptr @shared)
  %threads.at = getelementptr %program, ptr %program, i64 0, i32 6
  %threads = load i32, ptr %threads.at
  call void @omp_set_num_threads(i32 %threads)
  %outside = load ptr, ptr %program
  %count.at = getelementptr %frame, ptr %frame, i64 0, i32 5, i32 2
  %count = load i64, ptr %count.at
  %operands.at = getelementptr %frame, ptr %frame, i64 0, i32 5, i32 4
  %operands = load ptr, ptr %operands.at
  br label %operand

operand:
  %i = phi i64 [ 0, %lock ], [ %next.i, %operand.place ]
  %more.operands = icmp ult i64 %i, %count
  br i1 %more.operands, label %operand.place, label %result

operand.place:
  %operand.at = getelementptr ptr, ptr %operands, i64 %i
  %status.operand = call i32 @place(ptr %outside, i64 %i, ptr %operand.at)
  %next.i = add i64 %i, 1
  br label %operand

result:
  %results.at = getelementptr %frame, ptr %frame, i64 0, i32 6, i32 4
  %results = load ptr, ptr %results.at
  %status.result = call i32 @place(ptr %outside, i64 %count, ptr %results)
  %bytes.at = getelementptr %program, ptr %program, i64 0, i32 5
  %bytes = load i64, ptr %bytes.at
  %is.large = icmp uge i64 %bytes, 2097152
  br i1 %is.large, label %large, label %space

; XLA allocates the memory of a whole step from the C library, and frees it afterwards. At each step the kernel
; therefore maps it again, page by page, which takes a sixth of the time of a ResNet. With the advice below the kernel
; uses large pages. The bounds of that memory are not known here, so the advice covers a gigabyte on each side of the
; result.
large:
  %result.buffer = load ptr, ptr %results
  %result.at = getelementptr %buffer, ptr %result.buffer, i64 0, i32 3
  %result.address = load i64, ptr %result.at
  %start = sub i64 %result.address, 1073741824
  %start.aligned = and i64 %start, -2097152
  %start.pointer = inttoptr i64 %start.aligned to ptr
  %ignored.advice = call i32 @madvise(ptr %start.pointer, i64 2147483648, i32 14) ; MADV_HUGEPAGE
  br label %space

space:
  %space.base.at = getelementptr %shared, ptr @shared, i64 0, i32 2
  %space.base = load ptr, ptr %space.base.at
  %insides.at = getelementptr %program, ptr %program, i64 0, i32 1
  %insides = load i64, ptr %insides.at
  %inside.first.at = getelementptr %program, ptr %program, i64 0, i32 2
  %inside.first = load ptr, ptr %inside.first.at
  br label %inside

inside:
  %j = phi i64 [ 0, %space ], [ %next.j, %inside.place ]
  %more.insides = icmp ult i64 %j, %insides
  br i1 %more.insides, label %inside.place, label %steps

inside.place:
  %inside.at = getelementptr %inside, ptr %inside.first, i64 %j
  %memory = load ptr, ptr %inside.at
  %offset.at = getelementptr %inside, ptr %inside.at, i64 0, i32 1
  %offset = load i64, ptr %offset.at
  %address = getelementptr i8, ptr %space.base, i64 %offset
  %status.inside = call i32 @dnnl_memory_set_data_handle(ptr %memory, ptr %address)
  %next.j = add i64 %j, 1
  br label %inside

steps:
  %stream.at = getelementptr %shared, ptr @shared, i64 0, i32 1
  %stream = load ptr, ptr %stream.at
  %steps.at = getelementptr %program, ptr %program, i64 0, i32 3
  %steps.count = load i64, ptr %steps.at
  %step.first.at = getelementptr %program, ptr %program, i64 0, i32 4
  %step.first = load ptr, ptr %step.first.at
  br label %step

step:
  %k = phi i64 [ 0, %steps ], [ %next.k, %step.end ]
  %statuses = phi i32 [ 0, %steps ], [ %statuses.next, %step.end ]
  %more.steps = icmp ult i64 %k, %steps.count
  br i1 %more.steps, label %step.kind, label %unlock

step.kind:
  %step.at = getelementptr %step, ptr %step.first, i64 %k
  %primitive = load ptr, ptr %step.at
  %arguments.at = getelementptr %step, ptr %step.at, i64 0, i32 2
  %arguments = load ptr, ptr %arguments.at
  %is.packing = icmp eq ptr %primitive, null
  br i1 %is.packing, label %step.pack, label %step.run

step.pack:
  %packed = load i64, ptr %arguments
  %packed.at = getelementptr ptr, ptr %operands, i64 %packed
  %packed.buffer = load ptr, ptr %packed.at
  %source.at = getelementptr %buffer, ptr %packed.buffer, i64 0, i32 3
  %source = load ptr, ptr %source.at
  %target.offset.at = getelementptr %packing, ptr %arguments, i64 0, i32 1
  %target.offset = load i64, ptr %target.offset.at
  %target = getelementptr i8, ptr %space.base, i64 %target.offset
  store ptr %source, ptr %task
  %task.target.at = getelementptr %task, ptr %task, i64 0, i32 1
  store ptr %target, ptr %task.target.at
  %task.packing.at = getelementptr %task, ptr %task, i64 0, i32 2
  store ptr %arguments, ptr %task.packing.at
  %task.threads.at = getelementptr %task, ptr %task, i64 0, i32 3
  store i32 %threads, ptr %task.threads.at
  call void @GOMP_parallel(ptr @pack, ptr %task, i32 %threads, i32 0)
  br label %step.end

step.run:
  %arguments.count.at = getelementptr %step, ptr %step.at, i64 0, i32 1
  %arguments.count = load i32, ptr %arguments.count.at
  %status = call i32 @dnnl_primitive_execute(ptr %primitive, ptr %stream, i32 %arguments.count, ptr %arguments)
  br label %step.end

step.end:
  %step.status = phi i32 [ 0, %step.pack ], [ %status, %step.run ]
  %statuses.next = or i32 %statuses, %step.status
  %next.k = add i64 %k, 1
  br label %step

unlock:
  %ignored.too = call i32 @pthread_mutex_unlock(ptr @shared)
  %is.fine = icmp eq i32 %statuses, 0
  br i1 %is.fine, label %done, label %fail

done:
  ret ptr null

fail: ; an internal error, 13
  %api.at = getelementptr %frame, ptr %frame, i64 0, i32 2
  %api = load ptr, ptr %api.at
  %create.at = getelementptr %api, ptr %api, i64 0, i32 4
  %create = load ptr, ptr %create.at
  %error = alloca %error
  store %error { i64 28, ptr null, ptr @refused, i32 13 }, ptr %error
  %made = call ptr %create(ptr %error)
  ret ptr %made
}

; Sets the address of the outside array number `index` to that of a buffer of XLA.
define private i32 @place(ptr %outside, i64 %index, ptr %buffer.at) {
  %memory.at = getelementptr ptr, ptr %outside, i64 %index
  %memory = load ptr, ptr %memory.at
  %buffer = load ptr, ptr %buffer.at
  %address.at = getelementptr %buffer, ptr %buffer, i64 0, i32 3
  %address = load ptr, ptr %address.at
  %status = call i32 @dnnl_memory_set_data_handle(ptr %memory, ptr %address)
  ret i32 %status
}

; Copies a matrix so that each block of columns is contiguous, row after row: (rows, blocks, block) to (blocks, rows,
; block). Each thread copies a part of the rows. The library's own copy reads one block of columns at a time, which
; misses a page at every other row and takes three times as long.
define private void @pack(ptr %task) {
  %source = load ptr, ptr %task
  %target.at = getelementptr %task, ptr %task, i64 0, i32 1
  %target = load ptr, ptr %target.at
  %packing.at = getelementptr %task, ptr %task, i64 0, i32 2
  %packing = load ptr, ptr %packing.at
  %threads.at = getelementptr %task, ptr %task, i64 0, i32 3
  %threads.32 = load i32, ptr %threads.at
  %threads = zext i32 %threads.32 to i64
  %thread.32 = call i32 @omp_get_thread_num()
  %thread = zext i32 %thread.32 to i64
  %rows.at = getelementptr %packing, ptr %packing, i64 0, i32 2
  %rows = load i64, ptr %rows.at
  %row.bytes.at = getelementptr %packing, ptr %packing, i64 0, i32 3
  %row.bytes = load i64, ptr %row.bytes.at
  %block.bytes.at = getelementptr %packing, ptr %packing, i64 0, i32 4
  %block.bytes = load i64, ptr %block.bytes.at
  %apart = mul i64 %rows, %block.bytes
  %first.product = mul i64 %rows, %thread
  %first = udiv i64 %first.product, %threads
  %end.product = add i64 %first.product, %rows
  %end = udiv i64 %end.product, %threads
  br label %row

row:
  %i = phi i64 [ %first, %0 ], [ %next.i, %row.end ]
  %more.rows = icmp ult i64 %i, %end
  br i1 %more.rows, label %row.begin, label %done

row.begin:
  %from.offset = mul i64 %i, %row.bytes
  %from.row = getelementptr i8, ptr %source, i64 %from.offset
  %to.offset = mul i64 %i, %block.bytes
  %to.row = getelementptr i8, ptr %target, i64 %to.offset
  br label %block

block:
  %at = phi i64 [ 0, %row.begin ], [ %next.at, %block.copy ]
  %to = phi ptr [ %to.row, %row.begin ], [ %next.to, %block.copy ]
  %more.blocks = icmp ult i64 %at, %row.bytes
  br i1 %more.blocks, label %block.copy, label %row.end

block.copy:
  %from = getelementptr i8, ptr %from.row, i64 %at
  call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %from, i64 %block.bytes, i1 false)
  %next.at = add i64 %at, %block.bytes
  %next.to = getelementptr i8, ptr %to, i64 %apart
  br label %block

row.end:
  %next.i = add i64 %i, 1
  br label %row

done:
  ret void
}
