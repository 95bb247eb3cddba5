; What XLA:CPU calls in the place of a convolution: it has oneDNN compute on XLA's arrays, where they lie.
;
; LLVM's language, because a package without a compiled part has no other way to code that needs no interpreter: a
; Python function would wait for Python's lock at every call, and could not be called while a process ends. The first
; structures are those of XLA's foreign function interface, `xla/ffi/api/c_api.h`; the last ones are made by onednn.py.

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

%slot = type { i64, ptr }                            ; a key, and its program
%program = type { ptr, i64, ptr, i64, ptr, i64, i32 } ; outside; number of inside, inside; of steps, steps; bytes; threads
%inside = type { ptr, i64 }                          ; an array of the library, and its offset in the shared space
%step = type { ptr, i32, ptr }                       ; a primitive, number of arguments, arguments
%shared = type { [64 x i8], ptr, ptr, ptr, i64 }     ; lock, stream, space, slots, number of slots less one

@shared = external global %shared
@refused = private constant [31 x i8] c"oneDNN could not run a program\00"

declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @madvise(ptr, i64, i32)
declare void @omp_set_num_threads(i32)
declare i32 @dnnl_memory_set_data_handle(ptr, ptr)
declare i32 @dnnl_primitive_execute(ptr, ptr, i32, ptr)

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

; XLA takes the memory of a whole step from the C library, and gives it back afterwards, so that each step the kernel
; hands it out anew: page by page, which is a sixth of the time of a ResNet, unless it is advised that large pages will
; do. Where that memory begins and ends is not known here; advised is what lies within a gigabyte of the result.
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
  %k = phi i64 [ 0, %steps ], [ %next.k, %step.run ]
  %statuses = phi i32 [ 0, %steps ], [ %statuses.next, %step.run ]
  %more.steps = icmp ult i64 %k, %steps.count
  br i1 %more.steps, label %step.run, label %unlock

step.run:
  %step.at = getelementptr %step, ptr %step.first, i64 %k
  %primitive = load ptr, ptr %step.at
  %arguments.count.at = getelementptr %step, ptr %step.at, i64 0, i32 1
  %arguments.count = load i32, ptr %arguments.count.at
  %arguments.at = getelementptr %step, ptr %step.at, i64 0, i32 2
  %arguments = load ptr, ptr %arguments.at
  %status = call i32 @dnnl_primitive_execute(ptr %primitive, ptr %stream, i32 %arguments.count, ptr %arguments)
  %statuses.next = or i32 %statuses, %status
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

; Says where the array that is number `index` outside lies: in this buffer of XLA's.
define private i32 @place(ptr %outside, i64 %index, ptr %buffer.at) {
  %memory.at = getelementptr ptr, ptr %outside, i64 %index
  %memory = load ptr, ptr %memory.at
  %buffer = load ptr, ptr %buffer.at
  %address.at = getelementptr %buffer, ptr %buffer, i64 0, i32 3
  %address = load ptr, ptr %address.at
  %status = call i32 @dnnl_memory_set_data_handle(ptr %memory, ptr %address)
  ret i32 %status
}
